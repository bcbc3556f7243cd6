"""What `accelerator` measures: its arms, each a process of its own, and the order in which they are run."""

import dataclasses
import re
from typing import NamedTuple

from mechdiff.core import presets
from mechdiff.core.config import ExperimentConfig, override

# Modules that an arm's process runs.
MECHDIFF, PYTORCH = "experiments.benchmarks.mechdiff_arm", "experiments.benchmarks.torch_baseline"
DEVICE = "experiments.benchmarks._device"
PRODUCTS = ("float32", "tf32", "bfloat16")
SETTINGS = ("float32", "3xtf32", "tf32", "bfloat16")
ATTENTION = {"mechdiff": ("float32", "bfloat16"), "jax": ("float32", "bfloat16"), "cudnn": ("bfloat16",)}
# Read by `mechdiff_arm`: at how many stages rows join, and how many numbers an array may have.
ROW_COUNTS, INDEXED = "MECHDIFF_BENCHMARK_ROW_COUNTS", "MECHDIFF_BENCHMARK_INDEXED"
# Choices that nobody has timed on a card, each against its alternative: words, precision, environment.
ALTERNATIVES = (
    ("rows join late", "tf32", {ROW_COUNTS: "0"}),
    ("rows join at three stages", "tf32", {ROW_COUNTS: "3"}),
    ("arrays beyond 32 bits", "tf32", {INDEXED: str(2**40)}),
    ("arrays beyond 32 bits", "float32", {INDEXED: str(2**40)}),
    ("bias apart", "tf32", {"XLA_FLAGS": "--xla_disable_hlo_passes=cudnn-fused-convolution-rewriter"}),
    ("bias apart", "float32", {"XLA_FLAGS": "--xla_disable_hlo_passes=cudnn-fused-convolution-rewriter"}),
)
# Names of the arms that are run first, and of those that come second; the others come third. How long each
# takes on a card is not known, so that what is worth most comes first.
TURNS = (
    (
        r"answers, (float32|3xtf32)",
        r"product, .*",
        r"sweep of .*, tf32",
        r"sweep of .*, tf32, PyTorch batched_channels_last",
        r"sweep of paper.*, 3xtf32",
        r"training of [^,]*, [^,]*, [^,]*",
        r"training of .*, PyTorch channels_last_compiled",
    ),
    (
        r"answers, .*",
        r".*, started again",
        r"sweep of .*, (float32|3xtf32)",
        r"sweep of .*, float32, PyTorch batched_.*",
        r"sweep of paper.*, (tf32|float32), .*",
        r"attention, .*",
    ),
)


class Arm(NamedTuple):
    """One process: `module task variant`, of how many images (or a matrix of which side).

    Attributes:
      variables: of its environment.
      programs_of: the arm that has compiled the same programs, if any.
    """

    name: str
    module: str
    task: str
    variant: str
    images: int
    config: ExperimentConfig
    variables: dict[str, str] = {}  # noqa: RUF012 (never changed)
    programs_of: str = ""


def arms(small: bool, folder: str) -> list[Arm]:
    """In the order in which they are run: what is done when time is out is worth the most."""
    quick = {"MECHDIFF_BENCHMARK_SECONDS": "0.1"} if small else {}  # a rehearsal shows no speed
    planned = [arm._replace(variables=arm.variables | quick) for arm in _by_subject(small, folder)]
    return sorted(planned, key=lambda arm: turn(arm.name))


def turn(name: str) -> int:
    """When an arm is run: 0, 1 or 2."""
    for turn, patterns in enumerate(TURNS):
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            return turn
    return len(TURNS)


def _by_subject(small: bool, folder: str) -> list[Arm]:
    tiny = presets.preset("tiny")
    paper, cpu32 = (tiny, tiny) if small else (presets.preset("paper"), presets.preset("cpu32"))
    side = 256 if small else 8192
    profiled, images = dataclasses.replace(_at(paper, 1, "float32"), name=folder), 4 if small else 16
    sweeps = _sweeps("paper", paper, images, 1)
    in_float32 = next(arm.name for arm in sweeps if arm.variant == "float32")
    return [
        *(Arm(f"answers, {setting}", DEVICE, "answers", setting, 0, tiny) for setting in SETTINGS),
        *(Arm(f"product, {setting}", DEVICE, "product", setting, side, tiny) for setting in PRODUCTS),
        *_attention(paper, 2 if small else 64),
        *sweeps,
        *_training(paper, 8 if small else 128),
        *_sweeps("cpu32", cpu32, 4 if small else 64, 1 if small else 4),
        Arm(
            "profile, sweep of paper", DEVICE, "profile", "float32", images, profiled, programs_of=in_float32
        ),
    ]


def _attention(config: ExperimentConfig, images: int) -> list[Arm]:
    return [
        Arm(f"attention, {form}, {dtype}", DEVICE, "attention", f"{form} {dtype}", images, config)
        for form, dtypes in ATTENTION.items()
        for dtype in dtypes
    ]


def _at(config: ExperimentConfig, timesteps: int, setting: str) -> ExperimentConfig:
    return override(config, [f"sweep.timesteps={timesteps}", f"sweep.precision={setting}"])


def _sweeps(name: str, config: ExperimentConfig, images: int, timesteps: int) -> list[Arm]:
    """mechdiff in every precision, and with other choices; PyTorch's best forms in float32 and TF32."""
    title = f"sweep of {name}, {images} images, {timesteps} timesteps"
    shared_prefix = [
        Arm(
            f"{title}, {setting}", MECHDIFF, "forward_sweep", setting, images, _at(config, timesteps, setting)
        )
        for setting in SETTINGS
    ]
    alternatives = [
        Arm(
            f"{title}, {setting}, {words}", MECHDIFF, "forward_sweep", setting, images,
            _at(config, timesteps, setting), variables,
        )
        for words, setting, variables in ALTERNATIVES
    ]  # fmt: skip
    # The most telling first; one hook at a time, as most would write it, takes the longest.
    forms = ("batched_channels_last", "batched_compiled", "batched_eager", "channels_last")
    baselines = [
        Arm(
            f"{title}, {setting}, PyTorch {form}", PYTORCH, "forward_sweep", form, images,
            _at(config, timesteps, "float32"),
            {"JAX_DEFAULT_MATMUL_PRECISION": "float32" if setting == "float32" else "tensorfloat32"},
        )
        for form in forms
        for setting in ("tf32", "float32")
    ]  # fmt: skip
    tf32 = next(arm for arm in shared_prefix if arm.variant == "tf32")
    return [*shared_prefix, *alternatives, *baselines, _again(tf32)]


def _again(arm: Arm) -> Arm:
    """The same arm once more, whose programs are compiled already: what a second session waits for."""
    return arm._replace(name=f"{arm.name}, started again", programs_of=arm.name)


def _training(config: ExperimentConfig, batch: int) -> list[Arm]:
    title = f"training of paper, {config.train.dtype}, batch {batch}"
    mechdiff = Arm(title, MECHDIFF, "training_step", config.train.dtype, batch, config)
    forms = ("channels_last_compiled", "channels_last", "eager")
    baselines = [
        Arm(f"{title}, PyTorch {form}", PYTORCH, "training_step", form, batch, config) for form in forms
    ]
    return [mechdiff, *baselines, _again(mechdiff)]
