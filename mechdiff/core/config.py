"""Frozen configuration records and their validation. Presets live in `presets.py`."""

import ast
import dataclasses
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.core.old_names import CONFIG_FIELDS

Precision = Literal["float32", "3xtf32", "tf32", "bfloat16"]  # of products, from the most exact down
Prediction = Literal["epsilon", "v_prediction", "sample"]  # what a network outputs; see `diffusion.target`
LARGEST = 4096  # side of an image, channels, blocks; beyond it a number is a slip, and memory would end
MOST_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A DDPM UNet (Ho et al. 2020); a superset of diffusers' `UNet2DModel` where DDPM checkpoints use it.

    Levels are ordered from the highest resolution to the lowest, for encoder and decoder alike.
    """

    image_size: int = 32  # pixels; divisible by 2 ** (levels - 1)
    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (32, 64, 64)  # channels per level
    blocks_per_level: int = 1  # the decoder has one more
    down_attention: tuple[bool, ...] = (False, True, True)
    up_attention: tuple[bool, ...] = (False, True, True)
    mid_attention: bool = True
    heads: tuple[int, ...] = (4, 4, 4)  # per level; the middle uses the last
    norm_groups: int = 8
    norm_eps: float = 1e-6
    dropout: float = 0.0
    time_scale_shift: bool = False  # FiLM instead of addition in the residual blocks
    time_width_factor: int = 4  # width of the time embedding, in units of time_features
    flip_sin_to_cos: bool = False  # cos half first
    frequency_shift: float = 1.0
    down_padding: Literal[0, 1] = 1  # 0 pads right and bottom only, as the original DDPM does
    resample_conv: bool = True  # a convolution in down- and upsampling; else pooling and nearest
    resample_blocks: bool = False  # residual blocks do the down- and upsampling, as ADM may
    center_input: bool = False  # 2 x - 1 first
    prediction: Prediction = "epsilon"
    up_heads: tuple[int, ...] = ()  # per level, of the decoder; empty: as `heads`
    level_blocks: tuple[int, ...] = ()  # per level, where they differ; empty: blocks_per_level at each
    time_features: int = 0  # width of the sinusoidal features; 0: widths[0]
    timestep_scale: float = (
        1.0  # the network is fed t * timestep_scale (1000 / T where timesteps are rescaled)
    )
    sample_clip: float = 1.0  # sampling clips predicted images to [-sample_clip, sample_clip]; 0: not at all
    classes: int = 0  # that images are conditioned on; 0: none
    null_class: bool = True  # with classes: one label more, `classes`, stands for none of them
    class_embedding: Literal["table", "timestep", "identity"] = (
        "table"  # a number's features; a vector as it is
    )
    condition_channels: int = 0  # of an image (a low resolution, a masked one) that the input is joined with

    @property
    def takes_labels(self) -> bool:
        """Whether it is told the class of each image (a number, or a vector)."""
        return self.classes > 0 or self.class_embedding != "table"

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class; None if there is none."""
        return self.classes if self.classes and self.null_class else None

    def __post_init__(self):
        levels = len(self.widths)
        optional = [name for name in ("up_heads", "level_blocks") if getattr(self, name)]
        for name in ("down_attention", "up_attention", "heads", *optional):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"unet.{name}={getattr(self, name)} needs {levels} entries, one per width")
        for name in ("image_size", "in_channels", "out_channels", "blocks_per_level", "norm_groups"):
            _within(f"unet.{name}", getattr(self, name), 1, LARGEST)
        if self.image_size % 2 ** (levels - 1):
            raise ConfigError(
                f"unet.image_size={self.image_size} is not divisible by {2 ** (levels - 1)}, "
                f"which {levels} widths need; change image_size or widths"
            )
        self._check_levels("heads", self.heads)
        if self.up_heads:
            self._check_levels("up_heads", self.up_heads)
        for blocks in self.level_blocks:
            _at_least("unet.level_blocks", blocks, 1)
        _within("unet.dropout", self.dropout, 0.0, 0.999)
        _within("unet.norm_eps", self.norm_eps, 0.0, 1.0)
        _at_least("unet.time_features", self.time_features, 0)
        _within("unet.timestep_scale", self.timestep_scale, 1e-9, 1e9)
        _at_least("unet.sample_clip", self.sample_clip, 0.0)
        _at_least("unet.classes", self.classes, 0)
        _at_least("unet.condition_channels", self.condition_channels, 0)
        if self.classes and self.class_embedding != "table":
            raise ConfigError(
                f"unet.classes={self.classes} is the size of a table, but unet.class_embedding="
                f"{self.class_embedding!r} has none; set one of them"
            )

    def _check_levels(self, name: str, per_level: tuple[int, ...]) -> None:
        """Widths must be divisible by groups and, where there is attention, by heads."""
        for level, (width, heads) in enumerate(zip(self.widths, per_level)):
            _within("unet.widths", width, 1, LARGEST**2)
            _at_least(f"unet.{name}", heads, 1)
            if width % self.norm_groups:
                raise ConfigError(
                    f"unet.widths[{level}]={width} is not divisible by unet.norm_groups={self.norm_groups}"
                )
            attends = self.down_attention[level] or self.up_attention[level]
            middle = self.mid_attention and level == len(self.widths) - 1
            if (attends or middle) and width % heads:
                raise ConfigError(
                    f"unet.widths[{level}]={width} is not divisible by unet.{name}[{level}]={heads}"
                )


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Forward process (Ho et al. 2020; cosine: Nichol & Dhariwal 2021) and the weighting of its loss."""

    schedule: Literal["linear", "scaled_linear", "cosine", "betas"] = "linear"
    steps: int = 1000  # T
    beta_start: float = 1e-4  # not cosine
    beta_end: float = 0.02  # not cosine
    weighting: Literal["uniform", "min_snr"] = "uniform"
    min_snr_gamma: float = 5.0  # Hang et al. 2023
    betas: tuple[float, ...] = ()  # of schedule `betas`: all of them, one per step

    def __post_init__(self):
        _within("diffusion.steps", self.steps, 2, MOST_STEPS)
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
class Preprocessing:
    """How an image file becomes an image of the network's size; part of a model, and applied to all that it
    is examined on. The size is `unet.image_size`; images are never enlarged."""

    crop: str = "center"  # the largest centered square; center-N; ddim; none; squash: see `images.cropped`
    filter: Literal["bicubic", "bilinear", "box", "hamming", "lanczos", "nearest"] = "bicubic"  # of Pillow
    channels: Literal["rgb", "gray"] = "rgb"
    background: Literal["", "black", "white"] = ""  # under transparent pixels; empty: they are refused
    phases: Literal["kept", "random"] = "kept"  # random: same spectrum, no shapes; see `data.scrambled`

    def __post_init__(self):
        side = self.crop.removeprefix("center-")
        if self.crop not in CROPS and (side == self.crop or not side.isdecimal() or int(side) < 1):
            raise ConfigError(unknown("data.preprocessing.crop", self.crop, [*CROPS, "center-140"]))

    @property
    def channel_count(self) -> int:
        """Of an image that it makes."""
        return 3 if self.channels == "rgb" else 1

    @property
    def description(self) -> str:
        """For a reader, such as `'center crop, bicubic, RGB'`."""
        crop = {"none": "no crop", "squash": "squashed to a square"}.get(self.crop, f"{self.crop} crop")
        on = f", transparent pixels over {self.background}" if self.background else ""
        scrambled = ", random phases" if self.phases == "random" else ""
        return f"{crop}, {self.filter}, {'RGB' if self.channels == 'rgb' else 'gray'}{on}{scrambled}"


DRAWN = ("synthetic", "gaussian")  # names of data whose images are drawn at their size, not read
CROPS = ("center", "ddim", "none", "squash")  # and center-N


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and what is done to them.

    `path`: where CelebA, a TFDS copy or image files lie (several folders joined by a comma); of `folder` a
    folder, `.npy` or `.npz`.
    """

    name: Literal["synthetic", "gaussian", "celeba", "tfds", "folder", "unknown"] = (
        "synthetic"  # gaussian: see `data.gaussian`; unknown: imported model
    )
    path: str = ""
    cache: str = ""  # where decoded images are kept; empty: beside the run
    complexity: int = 4  # synthetic: rung of the complexity ladder, 0..4
    n_train: int = 16384  # synthetic, gaussian: images rendered; else an upper limit (0: all)
    n_test: int = 2048
    flip: bool = True  # mirror training images at random
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # not of synthetic images
    split: Literal["auto", "digest", "folders"] = "auto"  # folder: see `data.folder`
    split_seed: int = 0  # folder: which images are held out by their digest
    held_out: float = 0.2  # folder: share held out, half for validation and half for testing
    classes: str = ""  # labels that make an image's class, with commas: an attribute, a factor, `folder`

    def __post_init__(self):
        _within("data.complexity", self.complexity, 0, 4)
        _at_least("data.n_train", self.n_train, 0)
        _at_least("data.n_test", self.n_test, 0)
        _at_least("data.split_seed", self.split_seed, 0)
        _within("data.held_out", self.held_out, 0.001, 0.999)
        if self.name in DRAWN:
            _at_least("data.n_train", self.n_train, 1)
            _at_least("data.n_test", self.n_test, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimization: AdamW with warm-up, cosine decay and clipping; EMA of the parameters."""

    steps: int = 4000
    batch: int = 32
    accumulate: int = 1  # micro-batches a step; divides batch
    learning_rate: float = 1e-3
    warmup: int = 200
    final_fraction: float = 0.05  # of learning_rate, at the last step
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9995
    label_dropout: float = 0.1  # share of images shown under the null class, where there are classes
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    fsdp: bool = False  # spread parameters, moments and EMA over the devices, for models larger than one
    log_every: int = 50
    eval_every: int = 500
    eval_images: int = 128
    sample_every: int = 0  # 0: only at the end
    save_every: int = 250
    keep: tuple[int, ...] = ()  # steps at which the model is exported too, to WORKDIR/snapshots/STEP

    def __post_init__(self):
        positive = ("steps", "batch", "accumulate", "log_every", "eval_every", "eval_images", "save_every")
        for name in positive:
            _at_least(f"train.{name}", getattr(self, name), 1)
        for step in self.keep:
            _within("train.keep", step, 1, self.steps)
        for name in ("warmup", "sample_every", "weight_decay"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        if self.batch % self.accumulate:
            raise ConfigError(
                f"train.batch={self.batch} is not divisible by train.accumulate={self.accumulate}"
            )
        _within("train.learning_rate", self.learning_rate, 1e-9, 1.0)
        _within("train.label_dropout", self.label_dropout, 0.0, 1.0)
        _within("train.ema_decay", self.ema_decay, 0.0, 0.999999)
        _within("train.final_fraction", self.final_fraction, 0.0, 1.0)
        _within("train.clip_norm", self.clip_norm, 1e-6, 1e6)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """An ablation sweep: components x ablations x timesteps x images."""

    ablations: tuple[str, ...] = ("zero", "mean")
    timesteps: int = 8  # spread evenly in log-SNR
    images: int = 64  # scored at every timestep
    nested: bool = False  # other images at every timestep: more images in as many runs
    reference_images: int = 128  # that replacements come from, not scored; zero ablation needs none
    image_block: int = 16  # images in one chunk of the result
    chunk: int = 0  # interventions at once; 0: chosen by memory
    draws: int = 1  # of ablations `resample` (donors of an image) and `noise`; their losses are averaged
    optimal_steps: int = 32  # of Adam, for ablation `optimal`
    precision: Precision = "float32"  # of products; any other measures its own error, see `core.devices`

    def __post_init__(self):
        for kind in self.ablations:
            if kind not in ABLATIONS:
                raise ConfigError(unknown("ablation", kind, ABLATIONS))
        for name in ("timesteps", "images", "image_block", "draws", "optimal_steps"):
            _at_least(f"sweep.{name}", getattr(self, name), 1)
        unused = set(self.ablations) <= {"zero"}
        _at_least("sweep.reference_images", self.reference_images, 0 if unused else 1)
        _at_least("sweep.chunk", self.chunk, 0)
        if "resample" in self.ablations and self.draws >= self.images:
            raise ConfigError(
                f"sweep.draws={self.draws} donors of kind 'resample' need more than {self.draws} images, "
                f"but sweep.images={self.images}; raise it or lower sweep.draws"
            )


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What `reproduce` examines, and what it does with each network besides the sweep."""

    models: tuple[str, ...] = ()  # folders in checkpoints/; empty: train one per data set first
    controls: bool = False  # an untrained network of the same configuration beside each
    circuits: tuple[str, ...] = ()  # ablations under which a circuit is looked for
    role_sets: int = 0  # random sets, and untrained heads, that a role must beat; 0: no roles; 1000 for one
    random_sets: int = 0  # of as many channels, that each component's effect is compared with; 0: none
    images: int = 16  # of those scored, that controls, circuits and roles take
    timesteps: int = 8  # of circuits and roles, spread evenly in log-SNR

    def __post_init__(self):
        for kind in self.circuits:
            if kind not in ABLATIONS:
                raise ConfigError(unknown("ablation", kind, ABLATIONS))
        _at_least("study.role_sets", self.role_sets, 0)
        _at_least("study.random_sets", self.random_sets, 0)
        _at_least("study.images", self.images, 4)
        _at_least("study.timesteps", self.timesteps, 1)


ABLATIONS = (
    "zero",
    "mean",
    "resample",
    "noise",
    "optimal",
)  # whose replacements a sweep can make; `scale` is set by hand


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything a run is made of; its JSON is the run's identity."""

    name: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self):
        _within("seed", self.seed, 0, 2**32 - 1)  # JAX cuts larger ones to 32 bits

    def __repr__(self) -> str:
        from mechdiff.core.presets import PRESETS  # which are made of this record

        base = PRESETS.get(self.name, type(self)(name=self.name))
        changed = _differences("", to_dict(self), to_dict(base))
        start = f"preset {self.name}" if self.name in PRESETS else f"{self.name}, defaults"
        return f"ExperimentConfig({'; '.join([start, *changed])})"


# Fields that came after results had been named by a digest of all of them.
LATER_FIELDS = ("classes", "null_class", "class_embedding", "condition_channels")


def decisive(unet: UNetConfig) -> dict:
    """The fields of a network, JSON-ready, for a digest: later ones only where they are not at their
    defaults, so that results of networks without them keep their names."""
    return {
        name: value
        for name, value in dataclasses.asdict(unet).items()
        if name not in LATER_FIELDS or value != getattr(UNetConfig, name)
    }


def _differences(prefix: str, values: dict, base: dict) -> list[str]:
    """Settings that differ, as they would be set: `section.field=value`."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            lines += _differences(f"{prefix}{name}.", value, base[name])
        elif value != base.get(name):
            lines.append(f"{prefix}{name}={shorten(value)}")
    return lines


def to_dict(config: Any) -> dict:
    """A config as JSON-ready dicts."""
    return dataclasses.asdict(config)


def from_dict(data: dict, kind: type = ExperimentConfig) -> Any:
    """The inverse of `to_dict`; unknown or missing fields are errors that name them. Fields of the first
    edition are read under their old names."""
    hints = typing.get_type_hints(kind)
    renamed = CONFIG_FIELDS.get(kind.__name__, {})
    data = {renamed.get(name, name): value for name, value in data.items()}
    for name in data:
        if name not in hints:
            raise ConfigError(unknown("field", name, hints))
    values = {name: _restore(hints[name], value, name) for name, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: {error}") from None


def override(config: ExperimentConfig, assignments: Iterable[str]) -> ExperimentConfig:
    """`config` with assignments such as `"train.steps=10"` or `"seed=3"` applied in order.

    Raises:
      ConfigError: an unknown field (closest named), a value of the wrong type or out of range.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set={assignment!r} has no '='; write section.field=value")
        config = _assign(config, path.strip().split("."), text.strip(), path.strip())
    if config.data.name in DRAWN and config.data.path:
        raise ConfigError(
            f"data.path={config.data.path!r} has no bearing on data.name={config.data.name}; set data.name "
            "too, or leave it out"
        )
    return config


def _assign(config: Any, path: list[str], text: str, full: str) -> Any:
    hints = typing.get_type_hints(type(config))
    if path[0] in (renamed := CONFIG_FIELDS.get(type(config).__name__, {})):
        new = full.removesuffix(path[0]) + renamed[path[0]]
        raise ConfigError(f"setting {full!r} is called {new!r} now; write --set={new}=...")
    if path[0] not in hints:
        raise ConfigError(unknown("field", full, _all_fields(type(config), full, path)))
    current = getattr(config, path[0])
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise ConfigError(f"{full!r} is a section; name a field of it: {', '.join(to_dict(current))}")
        return dataclasses.replace(config, **{path[0]: _assign(current, path[1:], text, full)})
    if len(path) > 1:
        raise ConfigError(f"{full!r}: {path[0]!r} is a field, not a section")
    return dataclasses.replace(config, **{path[0]: _restore(hints[path[0]], _literal(text), full)})


def _all_fields(kind: type, full: str, path: list[str]) -> list[str]:
    prefix = full[: len(full) - len(".".join(path))]
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else None
        names += [f"{prefix}{name}.{leaf}" for leaf in inner] if inner else [prefix + name]
    return names


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _restore(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type that `hint` asks for, or a ConfigError that names both."""
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(unknown(f"value for {name}:", value, arguments))
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(value, str) and arguments[0] is not str:
            items = [_literal(item.strip()) for item in items]  # "false,true" is no literal as a whole
        items = items if isinstance(items, list | tuple) else [items]
        return tuple(_restore(arguments[0], item, name) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int | float):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r} is not of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number")
    return value


def _at_least(name: str, value: float, low: float):
    if value < low:
        raise ConfigError(f"{name}={value} is too small; at least {low}")


def _within(name: str, value: float, low: float, high: float):
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; {low} to {high}")
