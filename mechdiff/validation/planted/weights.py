"""Weights of a UNet written by hand, so that the function of each component is known.

Channels form groups of 8, which are the groups of every GroupNorm: group 0 is *live* (the only one that
`conv_out` reads), group 1 is *hidden* (holds the noisy image), the others are *unread* (no path from them
to the output). Live and hidden hold each of the three image channels as a pair (x, -x), and a carrier
(K, -K). Three facts make such a network exact in spite of its non-linearities:
  silu(x) - silu(-x) = x: a pair passes a SiLU unchanged;
  a pair has mean 0: GroupNorm only divides by the root mean square of the group;
  with a large carrier that root mean square is nearly constant: GroupNorm is nearly linear.
Without the carrier, GroupNorm divides a signal by its own size: one copy then has the effect of two.
"""

from collections.abc import Sequence

import jax
import numpy as np

from mechdiff.core.config import UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.stages import stages
from mechdiff.models.unet import init_shapes

GROUP = 8  # channels
LIVE, HIDDEN, UNREAD = 0, GROUP, 2 * GROUP  # first channel of each
CARRIER = 4.0
LEAK = 0.08  # scale of the weights from distractor branches to the live content
HIGH_PASS = (
    -np.outer([-1, 2, -1], [1, -2, 1]) / 16
)  # response 1 to a checkerboard of pixels, 0 to linear gradients


def template(config: UNetConfig) -> tuple[PyTree, Intervention]:
    """Zero parameters of the network, and its identity intervention; nothing is compiled."""
    shapes, identity = init_shapes(config)

    def filled(tree: PyTree, value: float) -> PyTree:
        return jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), tree)

    intervention = Intervention(
        filled(identity.gate, 1), filled(identity.replacement, 0), filled(identity.temperature, 1), ALWAYS
    )
    return filled(shapes, 0), intervention


def distractors(config: UNetConfig, rng: np.random.Generator, leak: float = LEAK) -> PyTree:
    """Parameters of active distractors only: no component affects the output, but for `leak`.

    Heads attend sharply, and their output projections are zero. Branches, skips and time injections are
    random and write to unread channels; branches also write to the live content, with weights of scale
    `leak`.
    """
    params, _ = template(config)

    def normal(leaf: np.ndarray, deviation: float) -> np.ndarray:
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    for stage in stages(config):
        at = params.get(stage.name)
        if stage.op == "conv_in":
            at["conv"]["kernel"][..., UNREAD:] = normal(at["conv"]["kernel"][..., UNREAD:], 0.4)
        elif stage.op == "attention":
            heads = config.heads[stage.level]
            sharpness = rng.uniform(1.2, 3, heads).repeat(stage.width // heads)
            for name in "qk":
                at[name]["kernel"][UNREAD:] = normal(at[name]["kernel"][UNREAD:], 1) * sharpness
                at[name]["kernel"] /= np.sqrt(stage.width)
            at["v"]["kernel"][:] = normal(at["v"]["kernel"], 2 / np.sqrt(stage.width))
        elif stage.op == "block":
            _distractor_block(at, normal, leak)
        for name in ("norm", "norm1", "norm2"):
            if at and name in at:
                at[name]["scale"][:] = 1
    for layer in params["time"].values():
        layer["kernel"][:] = normal(layer["kernel"], len(layer["kernel"]) ** -0.5)
    return params


def _distractor_block(at: PyTree, normal, leak: float) -> None:
    fan_in = 9 * at["conv1"]["kernel"].shape[2]
    at["conv1"]["kernel"][:] = normal(at["conv1"]["kernel"], fan_in**-0.5)
    into = at["conv2"]["kernel"]
    into[..., UNREAD:] = normal(into[..., UNREAD:], 2 * fan_in**-0.5)
    into[..., LIVE] = normal(into[..., LIVE], leak * fan_in**-0.5)
    into[..., LIVE + 1] = -into[..., LIVE]
    at["time_dense"]["kernel"][:] = normal(at["time_dense"]["kernel"], 0.3)
    if "shortcut" in at:
        kernel = at["shortcut"]["kernel"][0, 0]  # (activation and skip, width)
        width = kernel.shape[1]
        kernel[:width] = np.eye(width)
        kernel[width:, UNREAD:] = normal(kernel[width:, UNREAD:], 0.3)


def frame(
    params: PyTree, direct: dict[int, float], carrier: float = CARRIER, high_pass: bool = False
) -> None:
    """The path without gates: the image into hidden, channels of `direct` into live with that gain, and out.

    Args:
      carrier: of the live group; with 0, one copy of a signal has the effect of two.
      high_pass: hidden content is filtered with `HIGH_PASS`.
    """
    kernel, bias = params["conv_in"]["conv"]["kernel"], params["conv_in"]["conv"]["bias"]
    for channel in range(3):
        tap = HIGH_PASS if high_pass and channel == 0 else _tap((0, 0))
        _pair(kernel[:, :, channel], HIDDEN + 2 * channel, tap)
        _pair(kernel[:, :, channel], LIVE + 2 * channel, direct.get(channel, 0.0) * _tap((0, 0)))
    for start, size in ((LIVE, carrier), (HIDDEN, CARRIER)):
        bias[start + 6], bias[start + 7] = size, -size
    # Root mean square of a live group that holds a carrier, or a color of length 0.9, as its only content.
    size = carrier / 2 if carrier else 0.9 / 2
    for channel in range(3):
        plus = LIVE + 2 * channel
        params["conv_out"]["conv"]["kernel"][1, 1, plus : plus + 2, channel] = [size, -size]


def head(
    params: PyTree,
    which: tuple[str, int],
    heads: int,
    gain: float,
    channels: Sequence[int] = (0,),
    match: float = 0.0,
) -> None:
    """A head that copies hidden `channels` to live from the positions it attends to: all equally, or with
    `match` those whose hidden channel 1 has the sign of the query's.

    Args:
      which: its attention stage and its number there.
      heads: of the stage.
    """
    stage, index = which
    at = params[stage]
    depth = len(at["out"]["kernel"]) // heads
    start = index * depth
    for name in "qkv":
        at[name]["kernel"][:, start : start + depth] = 0
    for name in "qk":
        at[name]["kernel"][HIDDEN + 2, start] = match
    for column, channel in enumerate(channels, start):
        at["v"]["kernel"][HIDDEN + 2 * channel, column] = CARRIER / 2  # undoes the norm
        _pair(at["out"]["kernel"][column], LIVE + 2 * channel, gain)


def branch(
    params: PyTree, stage: str, gain: float, shift: tuple[int, int] = (0, 0), closed: float = 0.0
) -> None:
    """A residual branch that adds `gain` times the hidden content, `shift` pixels away, to the live content.

    With `closed`, offsets of that size keep its SiLUs at 0 unless `opened` injects their opposite.
    """
    at = params[stage]
    inner, outer = at["conv1"], at["conv2"]
    group = slice(HIDDEN, HIDDEN + GROUP)
    inner["kernel"][..., group] = 0
    outer["kernel"][..., LIVE : LIVE + 2] = 0
    outer["kernel"][:, :, group] = 0
    at["time_dense"]["kernel"][:, group] = 0
    for sign, source in ((1, HIDDEN), (-1, HIDDEN + 1)):
        _pair(inner["kernel"][:, :, source], HIDDEN, sign * CARRIER / 2 * _tap(shift))
    inner["bias"][group] = [-closed, -closed, closed, closed, 0, 0, CARRIER / 2, -CARRIER / 2]
    steep = 15.0 if closed else 1.0
    at["norm2"]["scale"][group] = steep
    for sign, source in ((1, HIDDEN), (-1, HIDDEN + 1)):
        _pair(outer["kernel"][1, 1, source], LIVE, sign * gain * CARRIER / 4 / steep)


def opened(
    params: PyTree,
    config: UNetConfig,
    schedule: NoiseSchedule,
    stage: str,
    window: tuple[int, int],
    closed: float,
) -> None:
    """Time injection into a `closed` branch that opens it inside `window` only (edges some 15 steps wide).

    A sine of t that is monotone over all timesteps is compared with its values at the edges by ramps; SiLU is
    a ramp where its argument is large.
    """
    half = config.widths[0] // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - config.frequency_shift))
    which = int(np.argmax(frequencies * schedule.steps < 1.5))
    slope, level = 2000.0, 8.0
    first, second = params["time"]["dense1"], params["time"]["dense2"]
    first["kernel"][:, :4], second["kernel"][:, 0], second["kernel"][:4] = 0, 0, 0
    first["kernel"][which, :4] = slope
    for unit, edge in enumerate(window):
        first["bias"][2 * unit : 2 * unit + 2] = -slope * np.sin(frequencies[which] * edge) + np.array(
            [15, -15]
        )
    second["kernel"][:4, 0] = level / 30 * np.array([1, -1, -1, 1])
    injection = closed / level * np.array([1, 1, -1, -1])
    params[stage]["time_dense"]["kernel"][0, HIDDEN : HIDDEN + 4] = injection


def skip(params: PyTree, stage: str, gain: float) -> None:
    """A skip whose hidden content is added to the live content."""
    kernel = params[stage]["shortcut"]["kernel"][0, 0]
    width = kernel.shape[1]
    kernel[width + HIDDEN, LIVE], kernel[width + HIDDEN, LIVE + 1] = gain, -gain


def _pair(kernel: np.ndarray, plus: int, value) -> None:
    """Into a pair of output channels: `value` and its opposite."""
    kernel[..., plus], kernel[..., plus + 1] = value, -np.asarray(value)


def _tap(shift: tuple[int, int]) -> np.ndarray:
    """The 3x3 kernel that reads the pixel at `shift`."""
    tap = np.zeros((3, 3))
    tap[1 + shift[0], 1 + shift[1]] = 1
    return tap
