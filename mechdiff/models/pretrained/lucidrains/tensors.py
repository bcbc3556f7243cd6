"""What tensors of lucidrains' `Unet` tell of its options, held against those that a config states."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechdiff.core.errors import CheckpointError, ConfigError, shorten
from mechdiff.models.pretrained.conditioning import IMAGE_CHANNELS
from mechdiff.models.pretrained.files import tensors
from mechdiff.models.pretrained.files.options import Options
from mechdiff.models.pretrained.lucidrains.noise_levels import WHAT

ANCHOR = "init_conv.weight"
GROUPS = "downs.0.0.block1.norm.bias"  # of group norms; others are RMS norms
USUAL_GROUPS = 8


def options_of(get: Options, state: tensors.State, path: Path) -> dict[str, Any]:
    """Options of the network, JSON-ready; a config that contradicts the tensors is refused."""
    levels = sum(f"downs.{level}.0.block1.proj.weight" in state for level in range(len(state)))
    for name in (ANCHOR, "final_conv.weight", "time_mlp.3.weight"):
        if name not in state:
            raise CheckpointError(f"{path} does not fit {WHAT}: 1 missing: {name}")
    read_off = _read_off(get, state, levels)
    _check_stated(get, read_off, levels)
    side = _side(get["image_size"])
    if side % 2 ** (levels - 1):
        raise ConfigError(f"{WHAT} option image_size={side} is not divisible by {2 ** (levels - 1)}")
    return {
        "levels": levels,
        "image_size": side,
        "channels": read_off["channels"],
        "self_condition": read_off["self_condition"],
        "theta": get["sinusoidal_pos_emb_theta"],
        "groups": _groups(get, state),
    }


def _side(size: tuple[int, ...]) -> int:
    """The side of images: one number, or both sides, as `GaussianDiffusion` takes them too."""
    sides = set(size)
    if len(size) > 2 or len(sides) != 1:
        raise ConfigError(f"{WHAT} option image_size={shorten(list(size))} is not that of square images")
    return sides.pop()


def _read_off(get: Options, state: tensors.State, levels: int) -> dict[str, Any]:
    """The options that the tensors tell."""
    joined, outputs = state[ANCHOR].shape[1], len(state["final_conv.weight"])
    channels, self_condition = _channels(get, joined, outputs)
    attentions = [f"downs.{level}.2" for level in range(levels)]
    memory = {name: state[f"{name}.mem_kv"].shape for name in attentions if f"{name}.mem_kv" in state}
    full = [f"{name}.to_out.weight" in state for name in memory]
    dim = len(state["time_mlp.3.weight"]) // 4
    widths = [
        len(state[f"downs.{level}.3{'' if level == levels - 1 else '.1'}.weight"]) for level in range(levels)
    ]
    return {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "channels": channels,
        "self_condition": self_condition,
        "learned_variance": outputs == 2 * channels,
        "attn_heads": tuple(shape[1] for shape in memory.values()),
        "attn_dim_head": tuple(shape[3 if f else 2] for shape, f in zip(memory.values(), full, strict=True)),
        "full_attn": tuple(full),
    }


def _check_stated(get: Options, read_off: Mapping[str, Any], levels: int) -> None:
    """Refuses options that contradict the tensors; one value may stand for all levels."""
    for name, value in read_off.items():
        stated = get[name]
        single = isinstance(value, tuple) and isinstance(stated, tuple) and len(stated) == 1
        stated = stated * len(value) if single else stated
        if stated not in (None, value, (None,) * levels):
            raise ConfigError(f"{WHAT} option {name}={shorten(get[name])}, but the tensors say {value}")


def _groups(get: Options, state: tensors.State) -> int:
    """Groups of the norms, which no tensor tells; without bearing where they are RMS norms."""
    width, groups = len(state["downs.0.0.block1.proj.weight"]), get["resnet_block_groups"] or USUAL_GROUPS
    if GROUPS not in state and get["resnet_block_groups"] is not None:
        raise ConfigError(f"{WHAT} option resnet_block_groups={groups}, but the tensors say RMS norms")
    if GROUPS in state and width % groups:
        raise ConfigError(f"{WHAT} option resnet_block_groups={groups} does not divide {width} channels")
    return groups


def _channels(get: Options, joined: int, outputs: int) -> tuple[int, bool]:
    """Channels of an image, and whether the input is joined with an earlier estimate of it."""
    fits = [c for c in sorted({joined, joined // 2}) if joined in (c, 2 * c) and outputs in (c, 2 * c)]
    if get["channels"] is not None:
        fits = [c for c in fits if c == get["channels"]]
    if len(fits) == 2:  # both what joins and what is predicted may be doubled
        doubled = {get["self_condition"], get["learned_variance"]} - {None}
        fits = [c for c in fits if doubled <= {c == fits[0]}]
    if len(fits) == 2 and fits[0] in IMAGE_CHANNELS:
        raise ConfigError(
            f"{WHAT}: {joined} channels in and {outputs} out may be images of {fits[0]}, self-conditioned "
            f"and with learned variances: write channels={fits[0]} into the config if they are"
        )
    stated = ("channels", "self_condition", "learned_variance")
    said = ", ".join(f"{name}={get[name]}" for name in stated if get[name] is not None)
    if len(fits) != 1 or fits[0] not in IMAGE_CHANNELS:
        raise ConfigError(
            f"{WHAT}: {joined} channels in and {outputs} out{said and f' with {said}'} are not those of "
            "images of 1 or 3 channels (latents are not images)"
        )
    return fits[0], joined == 2 * fits[0]
