"""Options of `UNet2DModel` as a config of ours, and back."""

from collections.abc import Mapping

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.options import (
    Option,
    Options,
    anything,
    boolean,
    choice,
    integer,
    listed,
    number,
    optional,
    read_options,
    refusal,
)

WHAT = "UNet2DModel"
WORDS = listed(choice(kind="the name of a kind of block"))
TABLE = {  # defaults of diffusers 0.42; they have not changed since 0.0.4
    "sample_size": Option(None, optional(listed(integer()))),
    "in_channels": Option(3, integer()),
    "out_channels": Option(3, integer()),
    "center_input_sample": Option(False, boolean()),
    "time_embedding_type": Option("positional", anything(), ("positional",)),
    "time_embedding_dim": Option(None, optional(integer())),
    "freq_shift": Option(0, integer(0)),
    "flip_sin_to_cos": Option(True, boolean()),
    "down_block_types": Option(("DownBlock2D", *("AttnDownBlock2D",) * 3), WORDS),
    "mid_block_type": Option("UNetMidBlock2D", anything(), ("UNetMidBlock2D",)),
    "up_block_types": Option((*("AttnUpBlock2D",) * 3, "UpBlock2D"), WORDS),
    "block_out_channels": Option((224, 448, 672, 896), listed(integer())),
    "layers_per_block": Option(2, integer()),
    "mid_block_scale_factor": Option(1, number(), (1,)),
    "downsample_padding": Option(1, integer(0), (0, 1)),
    "downsample_type": Option("conv", anything(), ("conv", "resnet")),
    "upsample_type": Option("conv", anything(), ("conv", "resnet")),
    "dropout": Option(0.0, number(0.0)),
    "act_fn": Option("silu", anything(), ("silu", "swish")),
    "attention_head_dim": Option(8, optional(integer())),
    "norm_num_groups": Option(32, integer()),
    "attn_norm_num_groups": Option(None, optional(integer())),
    "norm_eps": Option(1e-5, number(0.0)),
    "resnet_time_scale_shift": Option("default", anything(), ("default", "scale_shift")),
    "add_attention": Option(True, boolean()),
    "class_embed_type": Option(None, anything(), (None, "timestep", "identity")),
    "num_class_embeds": Option(None, optional(integer())),
    "num_train_timesteps": Option(None, optional(integer())),
}
IGNORED = (  # what diffusers' EMAModel leaves in the config of the weights that it saves
    *("decay", "inv_gamma", "min_decay", "min_value", "optimization_step", "power", "update_after_step"),
    *("use_ema_warmup", "(torch_)?dtype"),
)


def unet_config(config: Mapping, prediction: str = "epsilon") -> UNetConfig:
    """Our config of a `UNet2DModel` made with these options; absent ones are diffusers' defaults.

    Raises:
      ConfigError: unknown or unsupported options.
    """
    get = read_options(config, TABLE, what=WHAT, ignored=IGNORED)
    _check_norms(get)
    widths = tuple(get["block_out_channels"])
    down, up = _attention(get, "down_block_types"), _attention(get, "up_block_types")[::-1]
    rows = 0 if get["class_embed_type"] else get["num_class_embeds"] or 0
    return UNetConfig(
        image_size=_side(get["sample_size"]),
        in_channels=get["in_channels"],
        out_channels=get["out_channels"],
        widths=widths,
        blocks_per_level=get["layers_per_block"],
        down_attention=down,
        up_attention=up,
        mid_attention=get["add_attention"],
        heads=_heads(widths, get["attention_head_dim"], _attending(down, up, get["add_attention"])),
        norm_groups=get["norm_num_groups"],
        norm_eps=get["norm_eps"],
        dropout=float(get["dropout"]),
        time_scale_shift=_film(get),
        time_width_factor=_time_factor(get["time_embedding_dim"], widths[0]),
        flip_sin_to_cos=get["flip_sin_to_cos"],
        frequency_shift=float(get["freq_shift"]),
        down_padding=get["downsample_padding"],
        resample_blocks=_resample_blocks(get),
        center_input=get["center_input_sample"],
        prediction=prediction,
        class_embedding=get["class_embed_type"] or "table",
        **conditioning.classes(rows, None, WHAT),
    )


def options(unet: UNetConfig) -> dict:
    """The inverse of `unet_config`: arguments of `UNet2DModel`.

    Raises:
      ConfigError: it has no options for this network.
    """
    _check_expressible(unet)
    middle = "Resnet{}sampleBlock2D" if unet.resample_blocks else "{}Block2D"

    def block_types(attends: tuple[bool, ...], side: str) -> list[str]:
        return [f"Attn{side}Block2D" if here else middle.format(side) for here in attends]

    return {
        "_class_name": WHAT,
        "sample_size": unet.image_size,
        "in_channels": unet.in_channels + unet.condition_channels,
        "out_channels": unet.out_channels,
        "center_input_sample": unet.center_input,
        "time_embedding_dim": unet.widths[0] * unet.time_width_factor,
        "freq_shift": int(unet.frequency_shift),
        "flip_sin_to_cos": unet.flip_sin_to_cos,
        "down_block_types": block_types(unet.down_attention, "Down"),
        "up_block_types": block_types(unet.up_attention[::-1], "Up"),
        "block_out_channels": list(unet.widths),
        "layers_per_block": unet.blocks_per_level,
        "downsample_padding": unet.down_padding,
        "downsample_type": "resnet" if unet.resample_blocks else "conv",
        "upsample_type": "resnet" if unet.resample_blocks else "conv",
        "dropout": unet.dropout,
        "attention_head_dim": _head_width(unet),
        "norm_num_groups": unet.norm_groups,
        "attn_norm_num_groups": unet.norm_groups,
        "norm_eps": unet.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if unet.time_scale_shift else "default",
        "add_attention": unet.mid_attention,
        "class_embed_type": None if unet.class_embedding == "table" else unet.class_embedding,
        "num_class_embeds": unet.label_count or None,
    }


def _check_expressible(unet: UNetConfig) -> None:
    """Raises ConfigError for what diffusers' options can't say."""
    if not (unet.resample_conv or unet.resample_blocks):
        raise ConfigError(f"unet.resample_conv=False: {WHAT} has no resampling without parameters")
    single_values = {"up_heads": (), "level_blocks": (), "time_features": 0, "timestep_scale": 1.0}
    for name, value in single_values.items():
        if getattr(unet, name) != value:
            raise ConfigError(f"unet.{name}={getattr(unet, name)}: {WHAT} has no option for it")
    if unet.frequency_shift % 1:
        raise ConfigError(f"unet.frequency_shift={unet.frequency_shift}: freq_shift of {WHAT} is an integer")


def _head_width(unet: UNetConfig) -> int | None:
    """Channels of a head, the same at all levels; None: one head a layer."""
    attending = _attending(unet.down_attention, unet.up_attention, unet.mid_attention)
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


def _film(get: Options) -> bool:
    return get["resnet_time_scale_shift"] == "scale_shift"


def _check_norms(get: Options) -> None:
    """Raises ConfigError for groups that don't divide the channels, or differ in the middle's attention."""
    widths, groups, eps = get["block_out_channels"], get["norm_num_groups"], get["norm_eps"]
    for width in widths:
        if width % groups:
            raise ConfigError(f"{WHAT} option norm_num_groups={groups} does not divide {width} channels")
    if eps <= 0:
        raise ConfigError(f"{WHAT} option norm_eps={eps} must be above 0")
    of_attention = get["attn_norm_num_groups"]
    if get["add_attention"] and (of_attention or (None if _film(get) else groups)) != groups:
        raise ConfigError(refusal(WHAT, "attn_norm_num_groups", of_attention, (groups,)))


def _attention(get: Options, option: str) -> tuple[bool, ...]:
    side = "Down" if option.startswith("down") else "Up"
    names = (f"{side}Block2D", f"Resnet{side}sampleBlock2D", f"Attn{side}Block2D")
    for name in get[option]:
        if name not in names:
            raise ConfigError(refusal(WHAT, option, name, names))
    if len(get[option]) != len(get["block_out_channels"]):
        raise ConfigError(f"{WHAT} options {option} and block_out_channels differ in length")
    return tuple(name.startswith("Attn") for name in get[option])


def _resample_blocks(get: Options) -> bool:
    """Whether residual blocks do the resampling, throughout."""
    resampled = {*_resampled(get, "down"), *_resampled(get, "up")}
    if len(resampled) > 1:
        raise ConfigError(
            f"{WHAT} options down_block_types and up_block_types mix convolutions and residual blocks for "
            "resampling; only one of them throughout is supported"
        )
    return resampled == {True}


def _resampled(get: Options, side: str) -> set[bool]:
    """Whether residual blocks do the resampling, at the levels that have any."""
    types, kind = get[f"{side}_block_types"][:-1], get[f"{side}sample_type"]
    return {t.startswith("Resnet") or (t.startswith("Attn") and kind == "resnet") for t in types}


def _heads(widths: tuple[int, ...], depth: int | None, attends: list[bool]) -> tuple[int, ...]:
    """Heads per level; no depth means one head. Levels without attention may be narrower than a head."""
    levels = list(zip(widths, attends, strict=True))
    for width, here in levels:
        if here and depth and width % depth:
            raise ConfigError(f"{WHAT} option attention_head_dim={depth} does not divide {width} channels")
    return tuple(width // depth if depth and here else 1 for width, here in levels)


def _attending(down: tuple[bool, ...], up: tuple[bool, ...], middle: bool) -> list[bool]:
    """Per level, whether there is attention anywhere; the middle is of the last."""
    attends = [a or b for a, b in zip(down, up, strict=True)]
    return [*attends[:-1], attends[-1] or middle]


def _side(size: tuple[int, ...] | None) -> int:
    match size:
        case (side,):
            return side
        case (side, other) if side == other:
            return side
    raise ConfigError(
        f"{WHAT} option sample_size={shorten(size and list(size))} is not supported; write the side of "
        "square images"
    )


def _time_factor(width: int | None, first: int) -> int:
    if width and width % first:
        raise ConfigError(
            f"{WHAT} option time_embedding_dim={width} is not a multiple of {first}, the first width"
        )
    return width // first if width else 4
