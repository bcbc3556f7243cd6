"""Options of `UNet2DModel` as a config of ours; `written` is the way back."""

from collections.abc import Mapping

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.files.options import (
    Option,
    Options,
    Type,
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
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"}
BLOCK_TYPES = listed(choice(kind="the name of a kind of block"))
TABLE = {  # defaults of diffusers 0.42; they have not changed since 0.0.4
    "sample_size": Option(None, optional(listed(integer()))),
    "in_channels": Option(3, integer()),
    "out_channels": Option(3, integer()),
    "center_input_sample": Option(False, boolean()),
    "time_embedding_type": Option("positional", anything(), ("positional",)),
    "time_embedding_dim": Option(None, optional(integer())),
    "freq_shift": Option(0, integer(0)),
    "flip_sin_to_cos": Option(True, boolean()),
    "down_block_types": Option(("DownBlock2D", *("AttnDownBlock2D",) * 3), BLOCK_TYPES),
    "mid_block_type": Option("UNetMidBlock2D", anything(), ("UNetMidBlock2D", None)),
    "up_block_types": Option((*("AttnUpBlock2D",) * 3, "UpBlock2D"), BLOCK_TYPES),
    "block_out_channels": Option((224, 448, 672, 896), listed(integer())),
    "layers_per_block": Option(2, integer()),
    "mid_block_scale_factor": Option(1, number()),
    "downsample_padding": Option(1, integer(0), (0, 1)),
    "downsample_type": Option("conv", anything(), ("conv", "resnet", None)),  # None: conv
    "upsample_type": Option("conv", anything(), ("conv", "resnet", None)),
    "dropout": Option(0.0, number(0.0)),
    "act_fn": Option("silu", Type("the name of a function", str.lower), tuple(ACTIVATIONS)),
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
    middle = get["mid_block_type"] is not None
    mid_attention = middle and get["add_attention"]
    attending, depth = attended_levels(down, up, mid_attention), get["attention_head_dim"]
    rows = 0 if get["class_embed_type"] else get["num_class_embeds"] or 0
    return UNetConfig(
        image_size=_side(get["sample_size"]),
        in_channels=get["in_channels"],
        out_channels=get["out_channels"],
        widths=widths,
        blocks_per_level=get["layers_per_block"],
        down_attention=down,
        up_attention=up,
        middle=middle,
        mid_attention=mid_attention,
        mid_output_scale=float(get["mid_block_scale_factor"]) if middle else 1.0,
        heads=_heads(widths, depth, attending),
        head_width=_undivided(widths, depth, attending),
        mid_norm_groups=_middle_groups(get) if mid_attention else -1,
        norm_groups=get["norm_num_groups"],
        norm_eps=get["norm_eps"],
        dropout=float(get["dropout"]),
        time_scale_shift=get["resnet_time_scale_shift"] == "scale_shift",
        **_time_width(get["time_embedding_dim"], widths[0]),
        activation=ACTIVATIONS[get["act_fn"]],
        flip_sin_to_cos=get["flip_sin_to_cos"],
        frequency_shift=float(get["freq_shift"]),
        down_padding=get["downsample_padding"],
        **_resampling(get),
        center_input=get["center_input_sample"],
        prediction=prediction,
        class_embedding=get["class_embed_type"] or "table",
        **conditioning.classes(rows, None, WHAT),
    )


def _middle_groups(get: Options) -> int:
    """`UNetConfig.mid_norm_groups`: left out beside scale_shift, the middle's attention has no norm."""
    groups, of_attention = get["norm_num_groups"], get["attn_norm_num_groups"]
    if of_attention == groups:
        return -1
    if of_attention is None:
        return 0 if get["resnet_time_scale_shift"] == "scale_shift" else -1
    if get["block_out_channels"][-1] % of_attention:
        raise ConfigError(
            f"{WHAT} option attn_norm_num_groups={of_attention} does not divide "
            f"{get['block_out_channels'][-1]} channels"
        )
    return of_attention


def _check_norms(get: Options) -> None:
    """Raises ConfigError for groups that don't divide the channels."""
    widths, groups, eps = get["block_out_channels"], get["norm_num_groups"], get["norm_eps"]
    for width in widths:
        if width % groups:
            raise ConfigError(f"{WHAT} option norm_num_groups={groups} does not divide {width} channels")
    if eps <= 0:
        raise ConfigError(f"{WHAT} option norm_eps={eps} must be above 0")


def _attention(get: Options, option: str) -> tuple[bool, ...]:
    side = "Down" if option.startswith("down") else "Up"
    names = (f"{side}Block2D", f"Resnet{side}sampleBlock2D", f"Attn{side}Block2D")
    for name in get[option]:
        if _modern(name) not in names:
            raise ConfigError(refusal(WHAT, option, name, names))
    if len(get[option]) != len(get["block_out_channels"]):
        raise ConfigError(f"{WHAT} options {option} and block_out_channels differ in length")
    return tuple(_modern(name).startswith("Attn") for name in get[option])


def _modern(name: str) -> str:
    """The name of a kind of block without what diffusers began it with before its first release."""
    return name.removeprefix("UNetRes")


def _resampling(get: Options) -> dict[str, bool | tuple[bool, ...]]:
    """Fields that say where residual blocks do the resampling: throughout, or per level."""
    down, up = _resampled(get, "down"), _resampled(get, "up")
    if len({*down, *up}) < 2:
        return {"resample_blocks": {*down, *up} == {True}}
    return {"down_resample_blocks": (*down, False), "up_resample_blocks": (False, *up[::-1])}


def _resampled(get: Options, side: str) -> list[bool]:
    """Whether residual blocks do the resampling, at the levels that have any."""
    types, kind = map(_modern, get[f"{side}_block_types"][:-1]), get[f"{side}sample_type"]
    return [t.startswith("Resnet") or (t.startswith("Attn") and kind == "resnet") for t in types]


def _heads(widths: tuple[int, ...], depth: int | None, attends: list[bool]) -> tuple[int, ...]:
    """Heads per level; no depth means one head. Levels without attention may be narrower than a head."""
    levels = list(zip(widths, attends, strict=True))
    for width, here in levels:
        if here and depth and width < depth:
            raise ConfigError(
                f"{WHAT} option attention_head_dim={depth} leaves no head in {width} channels, which "
                f"diffusers can't run either; write at most {width}"
            )
    return tuple(width // depth if depth and here else 1 for width, here in levels)


def _undivided(widths: tuple[int, ...], depth: int | None, attends: list[bool]) -> int:
    """`UNetConfig.head_width`: where a head's width does not divide the channels, diffusers makes as many
    heads as fit, narrower together than the channels."""
    divided = all(width % depth == 0 for width, here in zip(widths, attends, strict=True) if here and depth)
    return 0 if divided or not depth else depth


def attended_levels(down: tuple[bool, ...], up: tuple[bool, ...], middle: bool) -> list[bool]:
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


def _time_width(width: int | None, first: int) -> dict[str, int]:
    """The field that says how wide the embedding is: in units of the first width where it is a multiple."""
    if width and width % first:
        return {"time_width": width}
    return {"time_width_factor": width // first if width else 4}
