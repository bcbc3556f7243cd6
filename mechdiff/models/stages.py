"""The topology of the denoiser: its stages in order. It is that of diffusers' `UNet2DModel`."""

import dataclasses
import functools
import re
from typing import Literal, NamedTuple

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError

_NAME = re.compile(r"(?P<side>down|mid|up)(?P<level>\d*)\.(?P<module>[a-z]+)(?P<number>\d*)")


class StageName(NamedTuple):
    """A stage's name split into fields, as text: `up2.attn1` is `("up", "2", "attn", "1")`."""

    side: str  # down, mid or up
    level: str  # empty in the middle
    module: str  # block, attn, downsample or upsample
    number: str  # empty for resampling


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the fold.

    Attributes:
      name: key of its parameters and prefix of its sites, such as `down0.block0`.
      op: `conv_in`, `block`, `attention`, `downsample`, `upsample` or `conv_out`.
      level: index into the widths of the config.
      resolution: side of its output, pixels.
      width: channels of its output.
      push: whether its output goes on the skip stack.
      pop: whether it takes a skip tensor.
      resample: -1 halves, 1 doubles the resolution.
      heads: of attention; 0 elsewhere.
    """

    name: str
    op: str
    level: int
    resolution: int
    width: int
    push: bool = False
    pop: bool = False
    resample: int = 0
    heads: int = 0

    @property
    def parsed_name(self) -> StageName | None:
        """Its name split into fields; None for `conv_in` and `conv_out`.

        Example:
          >>> Stage("up2.attn1", "attention", level=2, resolution=8, width=64).parsed_name
          StageName(side='up', level='2', module='attn', number='1')
        """
        match = _NAME.fullmatch(self.name)
        return StageName(**match.groupdict()) if match else None


def branch_before(stage: str) -> str:
    """The site of the residual branch that an attention stage follows: the block of its number.

    Raises:
      ConfigError: the name of no stage of the UNet.

    Example:
      >>> branch_before("down1.attn0")
      'down1.block0.res'
    """
    match = _NAME.fullmatch(stage)
    if match is None:
        raise ConfigError(
            f"{stage!r} is not an attention stage of the UNet; their names are such as 'down1.attn0'"
        )
    stage = StageName(**match.groupdict())
    return f"{stage.side}{stage.level}.block{stage.number}.res"


@functools.lru_cache
def stages(config: UNetConfig) -> tuple[Stage, ...]:
    """The stages of a network in order."""
    encoder = [_stage(config, "conv_in", "conv_in", 0, push=True)]
    for level in range(len(config.widths)):
        encoder += _encoder_level(config, level)
    decoder = []
    for level in reversed(range(len(config.widths))):
        decoder += _decoder_level(config, level)
    out = Stage("conv_out", "conv_out", 0, config.image_size, config.out_channels)
    return (*encoder, *_middle(config), *decoder, out)


def _stage(config: UNetConfig, name: str, op: str, level: int, **options) -> Stage:
    """A stage whose output has the resolution and the width of its level."""
    side = {"resolution": config.image_size // 2**level, "width": config.widths[level]}
    return Stage(name, op, level, **side | options)


def _blocks(config: UNetConfig, level: int) -> int:
    return config.level_blocks[level] if config.level_blocks else config.blocks_per_level


def resampled_by_blocks(config: UNetConfig, side: Literal["down", "up"]) -> tuple[bool, ...]:
    """Per level, whether a residual block does the resampling, if there is any.

    Example:
      >>> resampled_by_blocks(UNetConfig(down_resample_blocks=(True, False, False)), "up")
      (False, False, False)
    """
    per_level = {"down": config.down_resample_blocks, "up": config.up_resample_blocks}[side]
    return per_level or (config.resample_blocks,) * len(config.widths)


def _encoder_level(config: UNetConfig, level: int) -> list[Stage]:
    listed, attends = [], config.down_attention[level]
    for block in range(_blocks(config, level)):
        listed.append(_stage(config, f"down{level}.block{block}", "block", level, push=not attends))
        if attends:
            heads = config.heads[level]
            name = f"down{level}.attn{block}"
            listed.append(_stage(config, name, "attention", level, push=True, heads=heads))
    if level < len(config.widths) - 1:
        op = "block" if resampled_by_blocks(config, "down")[level] else "downsample"
        half = config.image_size // 2 ** (level + 1)
        options = {"resolution": half, "push": True, "resample": -1}
        listed.append(_stage(config, f"down{level}.downsample", op, level, **options))
    return listed


def _middle(config: UNetConfig) -> list[Stage]:
    if not config.middle:
        return []
    last = len(config.widths) - 1
    listed = [_stage(config, "mid.block0", "block", last)]
    if config.mid_attention:
        listed.append(_stage(config, "mid.attn0", "attention", last, heads=config.heads[last]))
    return [*listed, _stage(config, "mid.block1", "block", last)]


def _decoder_level(config: UNetConfig, level: int) -> list[Stage]:
    listed, up_heads = [], config.up_heads or config.heads
    for block in range(_blocks(config, level) + 1):
        listed.append(_stage(config, f"up{level}.block{block}", "block", level, pop=True))
        if config.up_attention[level]:
            name = f"up{level}.attn{block}"
            listed.append(_stage(config, name, "attention", level, heads=up_heads[level]))
    if level > 0:
        op = "block" if resampled_by_blocks(config, "up")[level] else "upsample"
        double = config.image_size // 2 ** (level - 1)
        options = {"resolution": double, "resample": 1}
        listed.append(_stage(config, f"up{level}.upsample", op, level, **options))
    return listed
