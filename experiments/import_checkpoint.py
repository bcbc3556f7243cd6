"""Makes a model of others ours: `python -m experiments.import_checkpoint --from=FOLDER --to=WORKDIR`.

FOLDER is a diffusers `UNet2DModel` (config.json, diffusion_pytorch_model.safetensors, scheduler_config.json
if there), or a guided-diffusion state dict as model.safetensors beside a config.json with its flags.
Afterwards WORKDIR/model is like a trained model: give it to experiments.sample and experiments.sweep as
--model. Who has only a pickle (.bin, .pt) and trusts it converts it first; the error that names it shows how.
"""

from pathlib import Path

import jax
from absl import flags

from experiments import _launch
from mechdiff.core import keys
from mechdiff.core.config import DataConfig, ExperimentConfig, to_dict
from mechdiff.data import to_bytes
from mechdiff.models import pretrained, unet
from mechdiff.models.denoiser import Denoiser
from mechdiff.storage import checkpoint, files, image_grid
from mechdiff.sweeps.execution import forecast, rollout

FROM = flags.DEFINE_string("from", None, "Folder of the foreign model.", required=True)
TO = flags.DEFINE_string("to", None, "Folder in which the model is put, as model/.", required=True)
SAMPLES = flags.DEFINE_integer("samples", 4, "Pictures drawn for its sample sheet; 0: none.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 50, "DDIM steps of each.", lower_bound=1)


def main(config, workdir):
    source, target = Path(FROM.value), Path(TO.value)
    found = pretrained.read(source)
    files.ensure_writable(target)
    identity = jax.jit(lambda key: unet.init_unet(key, found.unet)[1])(jax.random.key(0))
    denoiser = Denoiser(source.name, found.unet, found.schedule, found.params, identity)
    report(found, denoiser, config)
    about = ExperimentConfig(
        name=source.resolve().name,
        seed=config.seed,
        data=DataConfig(name="unknown"),
        unet=found.unet,
        diffusion=found.diffusion,
    )
    record = {"imported": {"layout": found.layout, "notes": found.notes}}
    sheet = {}
    if SAMPLES.value:
        key = keys.stream(jax.random.key(config.seed), "samples")
        pictures = to_bytes(rollout.draw_samples(denoiser, key, SAMPLES.value, STEPS.value))
        sheet["samples.png"] = image_grid.png(image_grid.sheet(pictures))
    folder = checkpoint.export_model(
        target / "model", found.params, to_dict(about), record, dtype=found.dtype, extras=sheet
    )
    print(folder)


def report(found: pretrained.Imported, denoiser: Denoiser, config: ExperimentConfig) -> None:
    """What was read, and how much memory examining it takes."""
    count = unet.count_parameters(found.unet)
    print(f"{found.layout}: {count / 1e6:.1f} M parameters, stored as {found.dtype}")
    forecast.print_memory_forecast(denoiser, config.sweep)
    for note in found.notes:
        print(note)


if __name__ == "__main__":
    _launch.run(main)
