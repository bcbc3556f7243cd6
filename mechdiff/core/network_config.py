"""The configuration of a UNet, and the part of it that names results."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mechdiff.core.errors import ConfigError
from mechdiff.core.ranges import at_least, within

# What a network outputs; see `diffusion.process.prediction_target`.
Prediction = Literal["epsilon", "v_prediction", "sample"]
Activation = Literal["silu", "relu", "gelu", "mish"]  # gelu: exact, by the error function
PER_LEVEL = ("up_heads", "level_blocks", "down_resample_blocks", "up_resample_blocks")  # or empty
MAX_SIZE = 4096  # side of an image, channels, blocks; a larger number is taken for a typing error


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A DDPM UNet (Ho et al. 2020); a superset of diffusers' `UNet2DModel` where DDPM checkpoints use it.

    Levels are ordered from the highest resolution to the lowest, for encoder and decoder alike.
    """

    image_size: int = 32  # pixels; divisible by 2 ** (levels - 1)
    in_channels: int = 3  # of the input: images, and the image condition if there is one
    out_channels: int = 3  # of predicted images; in_channels without those of a condition
    widths: tuple[int, ...] = (32, 64, 64)  # channels per level
    blocks_per_level: int = 1  # the decoder has one more
    down_attention: tuple[bool, ...] = (False, True, True)  # per level, whether the encoder attends
    up_attention: tuple[bool, ...] = (False, True, True)  # per level, whether the decoder attends
    mid_attention: bool = True  # whether the middle attends
    heads: tuple[int, ...] = (4, 4, 4)  # per level; the middle uses the last
    norm_groups: int = 8  # of group normalization
    norm_eps: float = 1e-6  # added to variances
    dropout: float = 0.0  # dropout rate in residual branches, in training
    time_scale_shift: bool = False  # FiLM instead of addition in the residual blocks
    time_width_factor: int = 4  # width of the time embedding, in units of time_features
    flip_sin_to_cos: bool = False  # time features: the cosines come first
    frequency_shift: float = 1.0  # feature i has frequency 10000 ** (-i / (features / 2 - shift))
    down_padding: Literal[0, 1] = 1  # 0 pads right and bottom only, as the original DDPM does
    resample_conv: bool = True  # a convolution in down- and upsampling; else pooling and nearest
    resample_blocks: bool = False  # residual blocks do the down- and upsampling, as ADM may
    center_input: bool = False  # the network begins with 2 x - 1
    prediction: Prediction = "epsilon"  # what the network was trained to output
    up_heads: tuple[int, ...] = ()  # per level, of the decoder; empty: as `heads`
    level_blocks: tuple[int, ...] = ()  # per level, where they differ; empty: blocks_per_level at each
    time_features: int = 0  # width of the sinusoidal features; 0: widths[0]
    timestep_scale: float = 1.0  # the network is given t * timestep_scale; ADM's rescaled timesteps: 1000 / T
    sample_clip: float = 1.0  # sampling clips predicted images to [-sample_clip, sample_clip]; 0: not at all
    classes: int = 0  # number of classes that images are conditioned on; 0: unconditional
    null_class: bool = True  # with classes: one more label, `classes`, stands for no class
    # table: learned vectors; timestep: sinusoidal features of a number; identity: the vector given.
    class_embedding: Literal["table", "timestep", "identity"] = "table"  # how a class is embedded
    condition_channels: int = 0  # of an image (low resolution, masked) that is concatenated to the input
    down_resample_blocks: tuple[bool, ...] = ()  # per level of the encoder; empty: as `resample_blocks`
    up_resample_blocks: tuple[bool, ...] = ()  # per level of the decoder; empty: as `resample_blocks`
    head_width: int = 0  # channels of an attention head; 0: the level's width divided by its heads
    mid_norm_groups: int = -1  # of the middle's attention; -1: norm_groups; 0: its input is not normalized
    activation: Activation = "silu"  # of residual blocks; silu everywhere else
    middle: bool = True  # whether there is a middle: two residual blocks, attention between
    mid_output_scale: float = 1.0  # what leaves each layer of the middle is divided by it
    time_width: int = 0  # width of the time embedding; 0: time_width_factor * time_features

    @property
    def takes_labels(self) -> bool:
        """Whether the network takes the class of each image, a number or a vector."""
        return self.classes > 0 or self.class_embedding != "table"

    @property
    def embedding_width(self) -> int:
        """Width of the embedding of time and class."""
        return self.time_width or (self.time_features or self.widths[0]) * self.time_width_factor

    @property
    def label_count(self) -> int:
        """Labels of the table: the classes, and the null class if there is one; 0 without classes."""
        return self.classes if self.null_label is None else self.classes + 1

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class; None if there is none."""
        return self.classes if self.classes and self.null_class else None

    def __post_init__(self):
        levels = len(self.widths)
        at_least("number of unet.widths", levels, 1)
        optional = [name for name in PER_LEVEL if getattr(self, name)]
        for name in ("down_attention", "up_attention", "heads", *optional):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"unet.{name}={getattr(self, name)} needs {levels} entries, one per width")
        for name in ("image_size", "in_channels", "out_channels", "blocks_per_level", "norm_groups"):
            within(f"unet.{name}", getattr(self, name), 1, MAX_SIZE)
        if self.image_size % 2 ** (levels - 1):
            raise ConfigError(
                f"unet.image_size={self.image_size} is not divisible by {2 ** (levels - 1)}, "
                f"which {levels} widths need; change image_size or widths"
            )
        self._check_levels("heads", self.heads)
        if self.up_heads:
            self._check_levels("up_heads", self.up_heads)
        for blocks in self.level_blocks:
            at_least("unet.level_blocks", blocks, 1)
        within("unet.dropout", self.dropout, 0.0, 0.999)
        within("unet.norm_eps", self.norm_eps, 0.0, 1.0)
        at_least("unet.time_features", self.time_features, 0)
        within("unet.time_width_factor", self.time_width_factor, 1, MAX_SIZE)
        within("unet.time_width", self.time_width, 0, MAX_SIZE**2)
        half = (self.time_features or self.widths[0]) // 2
        if half < 1 or half <= self.frequency_shift:
            raise ConfigError(
                f"unet.time_features={self.time_features or self.widths[0]} is too narrow for sines and "
                f"cosines with unet.frequency_shift={self.frequency_shift:g}; more than "
                f"{max(1, 2 * self.frequency_shift):g}"
            )
        within("unet.timestep_scale", self.timestep_scale, 1e-9, 1e9)
        at_least("unet.sample_clip", self.sample_clip, 0.0)
        at_least("unet.classes", self.classes, 0)
        at_least("unet.condition_channels", self.condition_channels, 0)
        within("unet.head_width", self.head_width, 0, MAX_SIZE)
        self._check_middle()
        if self.classes and self.class_embedding != "table":
            raise ConfigError(
                f"unet.classes={self.classes} is the size of a table, but unet.class_embedding="
                f"{self.class_embedding!r} has none; set one of them"
            )

    def _check_levels(self, name: str, per_level: tuple[int, ...]) -> None:
        """Widths must be divisible by groups and, where there is attention, by heads."""
        for level, (width, heads) in enumerate(zip(self.widths, per_level, strict=True)):
            within("unet.widths", width, 1, MAX_SIZE**2)
            at_least(f"unet.{name}", heads, 1)
            if width % self.norm_groups:
                raise ConfigError(
                    f"unet.widths[{level}]={width} is not divisible by unet.norm_groups={self.norm_groups}"
                )
            attends = self.down_attention[level] or self.up_attention[level]
            middle = self.mid_attention and level == len(self.widths) - 1
            if (attends or middle) and not self.head_width and width % heads:
                raise ConfigError(
                    f"unet.widths[{level}]={width} is not divisible by unet.{name}[{level}]={heads}"
                )

    def _check_middle(self) -> None:
        at_least("unet.mid_norm_groups", self.mid_norm_groups, -1)
        within("unet.mid_output_scale", self.mid_output_scale, 1e-6, 1e6)
        if not self.middle and (self.mid_attention or self.mid_output_scale != 1):
            raise ConfigError(
                "unet.middle=False leaves no middle to attend or to scale; set unet.mid_attention=False and "
                "unet.mid_output_scale=1"
            )
        if self.mid_norm_groups > 0 and self.widths[-1] % self.mid_norm_groups:
            raise ConfigError(
                f"unet.widths[-1]={self.widths[-1]} is not divisible by unet.mid_norm_groups="
                f"{self.mid_norm_groups}"
            )


# Fields added after results had been named by a digest of all fields.
LATER_FIELDS = ("classes", "null_class", "class_embedding", "condition_channels", "down_resample_blocks")
LATER_FIELDS += ("up_resample_blocks", "head_width", "mid_norm_groups", "activation", "middle")
LATER_FIELDS += ("mid_output_scale", "time_width")


def decisive(unet: UNetConfig) -> dict:
    """The fields of a network, JSON-ready, for a digest.

    `LATER_FIELDS` are included only where they differ from their defaults, so that older results keep their
    names.
    """
    return {
        name: value
        for name, value in dataclasses.asdict(unet).items()
        if name not in LATER_FIELDS or value != getattr(UNetConfig, name)
    }
