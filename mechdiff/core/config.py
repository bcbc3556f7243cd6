"""Frozen configuration records and their validation. Presets live in `presets.py`."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mechdiff.core.data_config import CROPS as CROPS
from mechdiff.core.data_config import DRAWN as DRAWN
from mechdiff.core.data_config import DataConfig as DataConfig
from mechdiff.core.data_config import Preprocessing as Preprocessing
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.fields import differences, from_fields, replaced, typed
from mechdiff.core.network_config import Prediction as Prediction
from mechdiff.core.network_config import UNetConfig as UNetConfig
from mechdiff.core.network_config import decisive as decisive
from mechdiff.core.ranges import MAX_RANDOM, at_least, count, distinct, folder_name, within

Precision = Literal["float32", "3xtf32", "tf32", "bfloat16"]  # of matrix products, the most exact first
ABLATIONS = ("zero", "mean", "resample", "noise", "optimal")  # a sweep can make replacements for these
MAX_STEPS = 1_000_000  # of a noise schedule
MAX_DRAWS = 10_000  # of an ablation: their mean then differs by 1 % of what one draw does


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Forward process (Ho et al. 2020; cosine: Nichol & Dhariwal 2021) and the weighting of its loss."""

    schedule: Literal["linear", "scaled_linear", "cosine", "betas"] = "linear"  # of noise
    steps: int = 1000  # T
    beta_start: float = 1e-4  # not cosine
    beta_end: float = 0.02  # not cosine
    weighting: Literal["uniform", "min_snr"] = "uniform"  # of timesteps in the training loss
    min_snr_gamma: float = 5.0  # Hang et al. 2023
    betas: tuple[float, ...] = ()  # of schedule `betas`: one per step

    def __post_init__(self):
        within("diffusion.steps", self.steps, 2, MAX_STEPS)
        expected = self.steps if self.schedule == "betas" else 0
        if len(self.betas) != expected:
            raise ConfigError(
                f"diffusion.betas has {len(self.betas)} numbers; schedule {self.schedule!r} of "
                f"{self.steps} steps needs {expected}"
            )
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ConfigError(
                f"diffusion.beta_start={self.beta_start}, beta_end={self.beta_end}: need 0 < start < end < 1"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimization: AdamW with warm-up, cosine decay and clipping; EMA of the parameters."""

    steps: int = 4000  # of training
    batch: int = 32  # images per step
    accumulate: int = 1  # micro-batches per step; divides batch
    learning_rate: float = 1e-3  # highest, after the warmup
    warmup: int = 200  # steps until the learning rate is reached
    final_fraction: float = 0.05  # of learning_rate, which a step after the last one would have
    weight_decay: float = 0.0  # of AdamW
    clip_norm: float = 1.0  # largest norm of a gradient
    ema_decay: float = 0.9995  # of the averaged parameters, which are exported; per step
    label_dropout: float = 0.1  # share of images shown under the null class, where there are classes
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    fsdp: bool = False  # spread parameters, moments and EMA over the devices, for models larger than one
    log_every: int = 50  # steps between lines of the log
    eval_every: int = 500  # steps between evaluations of the held-out loss
    eval_images: int = 128  # held-out images that the loss is averaged over
    sample_every: int = 0  # 0: only at the end
    save_every: int = 250  # steps between checkpoints
    keep: tuple[int, ...] = ()  # steps at which the model is exported too, to WORKDIR/snapshots/STEP

    def __post_init__(self):
        positive = ("steps", "batch", "accumulate", "log_every", "eval_every", "eval_images", "save_every")
        for name in positive:
            count(f"train.{name}", getattr(self, name), 1)
        if self.keep:
            distinct("train.keep", self.keep)
        for step in self.keep:
            within("train.keep", step, 1, self.steps)
        for name in ("warmup", "sample_every"):
            count(f"train.{name}", getattr(self, name), 0)
        at_least("train.weight_decay", self.weight_decay, 0)
        if self.batch % self.accumulate:
            raise ConfigError(
                f"train.batch={self.batch} is not divisible by train.accumulate={self.accumulate}"
            )
        within("train.learning_rate", self.learning_rate, 1e-9, 1.0)
        within("train.label_dropout", self.label_dropout, 0.0, 1.0)
        within("train.ema_decay", self.ema_decay, 0.0, 0.999999)
        within("train.final_fraction", self.final_fraction, 0.0, 1.0)
        within("train.clip_norm", self.clip_norm, 1e-6, 1e6)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """An ablation sweep: components x ablations x timesteps x images."""

    ablations: tuple[str, ...] = ("zero", "mean")  # of zero, mean, resample, noise, optimal
    timesteps: int = 8  # spread evenly in log-SNR
    images: int = 64  # scored at every timestep
    nested: bool = False  # a different image set per timestep: T times as many images at equal cost
    reference_images: int = 128  # images that replacements are made of, not scored; zero ablation needs none
    image_block: int = 16  # images in one chunk of the result
    chunk: int = 0  # interventions at once; 0: chosen by memory
    draws: int = 1  # of ablations `resample` (donors of an image) and `noise`; their losses are averaged
    optimal_steps: int = 32  # of Adam, for ablation `optimal`
    precision: Precision = "float32"  # of matrix products; below float32 the error is measured and stated

    def __post_init__(self):
        distinct("sweep.ablations", self.ablations)
        for ablation in self.ablations:
            if ablation not in ABLATIONS:
                raise ConfigError(unknown("ablation", ablation, ABLATIONS))
        for name in ("timesteps", "images", "image_block"):
            count(f"sweep.{name}", getattr(self, name), 1)
        within("sweep.draws", self.draws, 1, MAX_DRAWS)
        within("sweep.optimal_steps", self.optimal_steps, 1, MAX_STEPS)
        count("sweep.reference_images", self.reference_images, 1 if self.needs_reference else 0)
        count("sweep.chunk", self.chunk, 0)
        if "resample" in self.ablations and self.draws >= self.images:
            raise ConfigError(
                f"sweep.draws={self.draws} donors of ablation 'resample' need more than {self.draws} images, "
                f"but sweep.images={self.images}; raise it or lower sweep.draws"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether an ablation takes its replacements from other images."""
        return not set(self.ablations) <= {"zero"}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The networks of `reproduce`, and what is computed for each besides the sweep."""

    models: tuple[str, ...] = ()  # folders in checkpoints/; empty: train one per data set first
    controls: bool = False  # also examine an untrained network of the same configuration
    circuits: tuple[str, ...] = ()  # ablations under which a circuit is searched for
    role_sets: int = 0  # random sets, and untrained heads, that a role is tested against; 0: no roles
    random_sets: int = 0  # sets of as many random channels that each effect is compared with; 0: none
    images: int = 16  # how many of the scored images are used for controls, circuits, roles and pairs
    timesteps: int = 8  # of circuits, roles and pairs, spread evenly in log-SNR
    pairs: int = 0  # number of candidates whose pairs are all ablated, to find backup components; 0: none

    def __post_init__(self):
        for name in ("models", "circuits"):
            if values := getattr(self, name):
                distinct(f"study.{name}", values)
        for ablation in self.circuits:
            if ablation not in ABLATIONS:
                raise ConfigError(unknown("ablation", ablation, ABLATIONS))
        within("study.role_sets", self.role_sets, 0, MAX_RANDOM)
        within("study.random_sets", self.random_sets, 0, MAX_RANDOM)
        count("study.images", self.images, 4)
        count("study.timesteps", self.timesteps, 1)
        if self.pairs == 1 or self.pairs < 0:
            raise ConfigError(
                f"study.pairs={self.pairs}: a pair takes two components; 8 are usual, 0 for none"
            )
        count("study.pairs", self.pairs, 0)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All settings of a run; their JSON is the run's identity."""

    name: str
    seed: int = 0  # of training; of the noise of a sweep
    data: DataConfig = field(default_factory=DataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self):
        within("seed", self.seed, 0, 2**32 - 1)  # JAX cuts larger ones to 32 bits

    def __repr__(self) -> str:
        from mechdiff.core.presets import PRESETS  # here, since that module imports this one

        base = PRESETS.get(self.name, type(self)(name=self.name))
        changed = differences("", to_dict(self), to_dict(base))
        start = f"preset {self.name}" if self.name in PRESETS else f"{self.name}, defaults"
        return f"ExperimentConfig({'; '.join([start, *changed])})"


def to_dict(config: Any) -> dict:
    """A config as JSON-ready dicts."""
    return dataclasses.asdict(config)


def from_dict(data: dict, record: type = ExperimentConfig) -> Any:
    """The inverse of `to_dict`; fields of version 0.1 are read under their old names.

    Raises:
      ConfigError: an unknown or missing field, named; a value of another type or out of range.
    """
    return from_fields(data, record)


def override(config: ExperimentConfig, assignments: Iterable[str]) -> ExperimentConfig:
    """`config` with assignments such as `"train.steps=10"` or `"seed=3"`; the last one of a field holds.

    Only the resulting config is checked, since some fields must change together (all that have one value for
    each resolution).

    Raises:
      ConfigError: an unknown field (closest named), a value of the wrong type or out of range.
    """
    changes = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set={assignment!r} has no '='; write section.field=value")
        full, names = path.strip(), path.strip().split(".")
        changes[tuple(names)] = typed(type(config), names, text.strip(), full)
    config = replaced(config, changes)
    if ("name",) in changes:
        folder_name("name", config.name)
    if config.data.name in DRAWN and config.data.path:
        raise ConfigError(
            f"data.path={config.data.path!r} has no effect on data.name={config.data.name}; set data.name "
            "too, or leave it out"
        )
    return config


def check_effective(config: ExperimentConfig) -> None:
    """Checks that what was set of a training has an effect there; what is at its default was not set.

    Raises:
      ConfigError: a setting that has none beside others, named.
    """
    diffusion, train, unet = config.diffusion, config.train, config.unet
    idle = {}  # field -> its record, beside what
    if diffusion.schedule in ("cosine", "betas"):
        idle = dict.fromkeys(
            ("beta_start", "beta_end"), (diffusion, f"diffusion.schedule={diffusion.schedule}")
        )
    if diffusion.weighting == "uniform":
        idle["min_snr_gamma"] = diffusion, "diffusion.weighting=uniform"
    if unet.null_label is None:
        idle["label_dropout"] = train, f"unet.classes={unet.classes}, null_class={unet.null_class}"
    for name, (record, beside) in idle.items():
        if (value := getattr(record, name)) != getattr(type(record), name):
            section = "train" if record is train else "diffusion"
            raise ConfigError(f"{section}.{name}={value} has no effect beside {beside}; leave it out")
