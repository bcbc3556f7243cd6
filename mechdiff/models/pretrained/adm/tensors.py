"""Flags of an ADM network that can be inferred from the names and shapes of its tensors.

Command lines leave flags out, and configs are often typed by hand. The number of heads, the order of queries,
keys and values, the image's size and the noise schedule can't be inferred.
"""

from typing import Any

from mechdiff.models.pretrained.files.tensors import State


def shapes_say(state: State) -> dict[str, Any]:
    """The flags that these tensors imply.

    Levels are separated by upsampling, the last layer of a decoder level's last block; nothing about levels
    can be inferred if upsampling has no parameters and there is more than one level.

    Returns:
      some of `num_channels`, `in_channels`, `out_channels`, `use_scale_shift_norm`, `resblock_updown`,
      `widths` and `blocks` (per level, from the top) and `attends` (whether a level has attention).
    """
    said: dict[str, Any] = {}
    if "time_embed.0.weight" in state and state["time_embed.0.weight"].ndim == 2:
        said["num_channels"] = state["time_embed.0.weight"].shape[1]
    first, last = state.get("input_blocks.0.0.weight"), state.get("out.2.weight")
    if first is not None and last is not None and first.ndim == last.ndim == 4:
        said["in_channels"] = first.shape[1]
        said["out_channels"] = last.shape[0]
    inner, outer = (
        state.get("middle_block.0.emb_layers.1.bias"),
        state.get("middle_block.0.out_layers.3.bias"),
    )
    if inner is not None and outer is not None:
        said["use_scale_shift_norm"] = len(inner) == 2 * len(outer)
    return said | _levels(state)


def _levels(state: State) -> dict[str, Any]:
    blocks = _decoder(state)
    if not blocks:
        return {}
    rises = {number: _upsampling(layers) for number, layers in blocks.items()}
    said: dict[str, Any] = {"resblock_updown": "block" in rises.values()}
    levels: list[list[int]] = [[]]
    for number in sorted(blocks):
        levels[-1].append(number)
        if rises[number]:
            levels.append([])
    levels.reverse()
    widths = [state.get(f"output_blocks.{level[0]}.0.out_layers.3.bias") for level in levels if level]
    if len(widths) < len(levels) or any(width is None for width in widths):
        return {}
    encoder_falls = any(name.endswith(".0.op.weight") for name in state)
    if len(levels) == 1 and (encoder_falls or _has_several_widths(state)):
        return {}  # upsampling without parameters
    said["widths"] = tuple(len(width) for width in widths)
    said["blocks"] = tuple(len(level) - 1 for level in levels)
    said["attends"] = tuple(any("qkv" in parts for parts in blocks[level[0]].values()) for level in levels)
    return said


def _decoder(state: State) -> dict[int, dict[int, set[str]]]:
    """Number of an output block -> number of a layer -> names of its parts."""
    blocks: dict[int, dict[int, set[str]]] = {}
    for name in state:
        group, *rest = name.split(".")
        if group == "output_blocks" and len(rest) > 2 and rest[0].isdigit() and rest[1].isdigit():
            blocks.setdefault(int(rest[0]), {}).setdefault(int(rest[1]), set()).add(rest[2])
    return blocks


def _has_several_widths(state: State) -> bool:
    widths = [len(value) for name, value in state.items() if name.endswith(".0.out_layers.3.bias")]
    return len(set(widths)) > 1


def _upsampling(layers: dict[int, set[str]]) -> str:
    """How a decoder block ends its level: by a convolution (`conv`), a residual block (`block`), or not."""
    later = [parts for number, parts in layers.items() if number > 0]
    if any("conv" in parts for parts in later):
        return "conv"
    return "block" if any("in_layers" in parts for parts in later) else ""
