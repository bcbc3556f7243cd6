"""A config of ours as options of `UNet2DModel`: the inverse of `config`."""

from typing import Literal

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained.diffusers.config import WHAT, attended_levels
from mechdiff.models.stages import resampled_by_blocks


def options(unet: UNetConfig) -> dict:
    """The inverse of `unet_config`: arguments of `UNet2DModel`.

    Raises:
      ConfigError: it has no options for this network.
    """
    _check_expressible(unet)
    down, up = _side_options(unet, "down"), _side_options(unet, "up")
    return {
        "_class_name": WHAT,
        "sample_size": unet.image_size,
        "in_channels": unet.in_channels + unet.condition_channels,
        "out_channels": unet.out_channels,
        "center_input_sample": unet.center_input,
        "time_embedding_dim": unet.embedding_width,
        "freq_shift": int(unet.frequency_shift),
        "flip_sin_to_cos": unet.flip_sin_to_cos,
        **down,
        **up,
        "block_out_channels": list(unet.widths),
        "layers_per_block": unet.blocks_per_level,
        "downsample_padding": unet.down_padding,
        "dropout": unet.dropout,
        "attention_head_dim": _head_width(unet),
        "norm_num_groups": unet.norm_groups,
        "attn_norm_num_groups": _written_groups(unet),
        "norm_eps": unet.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if unet.time_scale_shift else "default",
        "add_attention": unet.mid_attention,
        "mid_block_type": "UNetMidBlock2D" if unet.middle else None,
        "mid_block_scale_factor": unet.mid_output_scale,
        "act_fn": unet.activation,
        "class_embed_type": None if unet.class_embedding == "table" else unet.class_embedding,
        "num_class_embeds": unet.label_count or None,
    }


def _side_options(unet: UNetConfig, side: Literal["down", "up"]) -> dict:
    """Kinds of blocks of encoder or decoder, and what resamples beside attention.

    Raises:
      ConfigError: that is a residual block at one level and a convolution at another.
    """
    attends = {"down": unet.down_attention, "up": unet.up_attention}[side]
    by_blocks = resampled_by_blocks(unet, side)
    levels = slice(0, -1) if side == "down" else slice(1, None)  # those that resample
    attended = zip(attends[levels], by_blocks[levels], strict=True)
    kinds = {by_block for here, by_block in attended if here}
    if len(kinds) > 1:
        raise ConfigError(
            f"unet.{side}_resample_blocks={by_blocks}: {WHAT} has one {side}sample_type for all levels with "
            "attention"
        )
    name = side.capitalize()
    types = [
        f"Attn{name}Block2D" if here else f"Resnet{name}sampleBlock2D" if by_block else f"{name}Block2D"
        for here, by_block in zip(attends, by_blocks, strict=True)
    ]
    resnet = kinds.pop() if kinds else unet.resample_blocks
    return {
        f"{side}_block_types": types if side == "down" else types[::-1],
        f"{side}sample_type": "resnet" if resnet else "conv",
    }


def _written_groups(unet: UNetConfig) -> int | None:
    """`attn_norm_num_groups`; None is no norm only beside scale_shift."""
    if unet.mid_norm_groups == 0 and unet.mid_attention and not unet.time_scale_shift:
        raise ConfigError(f"unet.mid_norm_groups=0: {WHAT} has no option for it without scale_shift")
    return unet.norm_groups if unet.mid_norm_groups < 0 else unet.mid_norm_groups or None


def _check_expressible(unet: UNetConfig) -> None:
    """Raises ConfigError for what diffusers' options can't say."""
    by_blocks = (*resampled_by_blocks(unet, "down")[:-1], *resampled_by_blocks(unet, "up")[1:])
    if not unet.resample_conv and not all(by_blocks):
        raise ConfigError(f"unet.resample_conv=False: {WHAT} has no resampling without parameters")
    single_values = {"up_heads": (), "level_blocks": (), "time_features": 0, "timestep_scale": 1.0}
    for name, value in single_values.items():
        if getattr(unet, name) != value:
            raise ConfigError(f"unet.{name}={getattr(unet, name)}: {WHAT} has no option for it")
    if unet.frequency_shift % 1:
        raise ConfigError(f"unet.frequency_shift={unet.frequency_shift}: freq_shift of {WHAT} is an integer")


def _checked_width(unet: UNetConfig, attending: list[bool]) -> int:
    """`head_width`, of which diffusers makes as many heads as fit."""
    for width, heads, here in zip(unet.widths, unet.heads, attending, strict=True):
        if here and heads != width // unet.head_width:
            raise ConfigError(
                f"unet.head_width={unet.head_width} with unet.heads={unet.heads}: {WHAT} has as many heads "
                f"as fit into {width} channels"
            )
    return unet.head_width


def _head_width(unet: UNetConfig) -> int | None:
    """Channels of a head, the same at all levels; None: one head a layer."""
    attending = attended_levels(unet.down_attention, unet.up_attention, unet.mid_attention)
    if unet.head_width:
        return _checked_width(unet, attending)
    used = [(w, h) for w, h, attends in zip(unet.widths, unet.heads, attending, strict=True) if attends]
    if all(heads == 1 for _, heads in used):
        return None
    widths = {width // heads for width, heads in used}
    if len(widths) > 1:
        raise ConfigError(
            f"unet.heads={unet.heads} of unet.widths={unet.widths} make heads {sorted(widths)} wide; {WHAT} "
            "has one attention_head_dim for all levels"
        )
    return widths.pop()
