"""Named experiments; every launcher starts from `preset(name)`."""

import dataclasses

from mechdiff.core.config import (
    DataConfig,
    DiffusionConfig,
    ExperimentConfig,
    StudyConfig,
    SweepConfig,
    TrainConfig,
    UNetConfig,
)
from mechdiff.core.errors import ConfigError, unknown

PRESETS = {
    # Unit tests and CI: seconds, not a model of anything.
    "tiny": ExperimentConfig(
        name="tiny",
        data=DataConfig(n_train=256, n_test=64),
        unet=UNetConfig(
            image_size=8,
            widths=(8, 16),
            down_attention=(False, True),
            up_attention=(False, True),
            heads=(2, 2),
            norm_groups=4,
        ),
        diffusion=DiffusionConfig(schedule="cosine", steps=50),
        train=TrainConfig(
            steps=20,
            batch=8,
            warmup=5,
            log_every=5,
            eval_every=10,
            eval_images=16,
            save_every=5,
            ema_decay=0.9,
        ),
        sweep=SweepConfig(timesteps=8, images=8, reference_images=8, image_block=4),
    ),
    # 16x16, attention at 16x16 and 8x8: cheap enough for many seeds on a CPU.
    "cpu16": ExperimentConfig(
        name="cpu16",
        unet=UNetConfig(
            image_size=16,
            widths=(24, 48, 48),
            down_attention=(True, True, False),
            up_attention=(True, True, False),
            heads=(4, 4, 4),
            prediction="v_prediction",
        ),
        diffusion=DiffusionConfig(schedule="cosine"),
        train=TrainConfig(steps=2000, batch=32, learning_rate=2e-3, warmup=100, ema_decay=0.998),
        # 44 x 24 scored images and 128 reference images: nearly all of 1,199 held-out ones.
        sweep=SweepConfig(timesteps=24, images=44, nested=True, reference_images=128, image_block=22),
        study=StudyConfig(
            models=(
                *(f"cpu16-{data}-seed{seed}" for data in ("synthetic", "celeba") for seed in range(2)),
                "cpu16-synthetic-level0-seed0",
                "cpu16-synthetic-level2-seed0",
            ),
            controls=True,
            circuits=("mean",),
            role_sets=1000,
            timesteps=4,
            pairs=8,
        ),
    ),
    # 32x32, attention at 16x16 and 8x8: faces in two hours on one core.
    "cpu32": ExperimentConfig(
        name="cpu32",
        unet=UNetConfig(image_size=32, widths=(32, 64, 64), prediction="v_prediction"),
        diffusion=DiffusionConfig(schedule="cosine"),
        train=TrainConfig(
            steps=12_800,
            batch=16,  # small batches stay in a CPU's cache
            learning_rate=2e-3,
            warmup=200,
            ema_decay=0.9995,
            eval_every=3200,
            sample_every=3200,
        ),
        sweep=SweepConfig(timesteps=24, images=24, nested=True, reference_images=64, image_block=12),
        study=StudyConfig(
            models=("cpu32-synthetic-seed0", "cpu32-celeba-seed0"),
            controls=True,
            circuits=("mean",),
            role_sets=1000,
            timesteps=4,
            pairs=8,
        ),
    ),
    # The size that the paper names (262 M parameters); its other settings are not known and are ours.
    # For a TPU or GPU; data-parallel over all devices.
    "paper": ExperimentConfig(
        name="paper",
        data=DataConfig(name="celeba", n_train=0, n_test=0),
        unet=UNetConfig(
            image_size=64,
            widths=(256, 512, 1024, 1024),
            down_attention=(False, False, True, True),
            up_attention=(False, False, False, False),
            heads=(8, 8, 8, 8),
            norm_groups=32,
            time_width_factor=2,
            prediction="v_prediction",  # predicted noise, with linear betas, gave strong color casts
        ),
        diffusion=DiffusionConfig(schedule="cosine"),
        train=TrainConfig(
            steps=500_000,
            batch=128,
            learning_rate=1e-4,
            warmup=5000,
            final_fraction=1.0,
            ema_decay=0.9999,
            dtype="bfloat16",
            log_every=100,
            eval_every=5000,
            eval_images=512,
            sample_every=25_000,
            save_every=5000,
        ),
        sweep=SweepConfig(images=2000, reference_images=2000, image_block=64),
    ),
}

# The README's first command: the shipped models of preset cpu32, minutes on two cores.
PRESETS["quickstart"] = dataclasses.replace(
    PRESETS["cpu32"],
    name="quickstart",
    sweep=SweepConfig(images=32, reference_images=64, image_block=16),
    study=StudyConfig(models=("cpu32-synthetic-seed0", "cpu32-celeba-seed0"), timesteps=4, pairs=8),
)

# The study of 16x16 networks, on splits of 2,140 held-out images: 24 x 84 scored, 124 for mean activations.
PRESETS["study"] = dataclasses.replace(
    PRESETS["cpu16"],
    name="study",
    sweep=dataclasses.replace(PRESETS["cpu16"].sweep, images=84, reference_images=124, image_block=28),
    study=dataclasses.replace(PRESETS["cpu16"].study, models=(), random_sets=20),
)

# The same at 64x64 (15 M parameters), trained and examined by `experiments.study` on one GPU.
PRESETS["study64"] = ExperimentConfig(
    name="study64",
    data=DataConfig(n_train=32_768, n_test=2140),
    unet=UNetConfig(
        image_size=64,
        widths=(64, 128, 192, 256),
        down_attention=(False, False, True, True),
        up_attention=(False, False, True, True),
        heads=(4, 4, 4, 4),
        norm_groups=16,
        prediction="v_prediction",
    ),
    diffusion=DiffusionConfig(schedule="cosine"),
    train=TrainConfig(
        steps=8000,
        batch=128,
        learning_rate=5e-4,
        warmup=500,
        ema_decay=0.999,
        dtype="bfloat16",
        eval_every=2000,
        eval_images=512,
        save_every=1000,
        keep=(2000, 4000, 8000),
    ),
    sweep=dataclasses.replace(PRESETS["study"].sweep, image_block=84),
    study=PRESETS["study"].study,
)


def preset(name: str) -> ExperimentConfig:
    """The experiment called `name`; an unknown name is an error that lists the closest ones.

    Example:
      >>> preset("cpu16").unet.image_size
      16
    """
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]
