"""The memory that networks take: bytes of rows, of passes, of gradients and of replacements.

Estimates are made from the shapes of activations, before anything is compiled. The stream is the feature map
that goes from stage to stage. On a CPU the stages of a pass run a few rows at a time (`shared_prefix`), so a
pass holds what lies between its stages: all rows of the stream and of the skips. On accelerators a stage runs
all rows at once.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models import attention, conditions
from mechdiff.models.stages import Stage, stages
from mechdiff.models.traced.denoiser import TracedNetwork
from mechdiff.models.unet import forward, init_shapes
from mechdiff.sweeps.execution import memory, shared_skips

Network = UNetConfig | TracedNetwork  # the part of a denoiser that is static in compiled programs

LIVE_MAPS = 4  # feature maps that are alive at once inside a stage
LOOP_COPIES = 3  # copies of a stage's inputs and outputs that XLA holds for the loop over rows; fitted
GRAD_MAPS = 8  # feature maps that a stage keeps for its gradient
CPU_BLOCK = 2**20  # bytes of a stage's input or output at once on a CPU; 0.5 to 2 MiB were equally fast


def row_bytes(config: Network) -> int:
    """Estimated bytes that one row keeps alive at the widest point of the forward pass, if each stage runs
    all rows at once.

    The number of rows in a pass is chosen by it, before the pass is compiled.
    """
    if not isinstance(config, UNetConfig):
        return config.row_bytes
    if memory.accelerated():
        joins = (1,) + (0,) * (len(stages(config)) - 1)
        return _pass_bytes_on_accelerator(config, joins) // 2  # of two rows, one of them clean
    maps, held = [], 0
    for stage in stages(config):
        output = _output_bytes(stage)
        patterns = _pattern_bytes(stage) if stage.op == "attention" else 0
        if stage.push:
            held += output
        if stage.pop:
            held -= output
        maps.append(held + LIVE_MAPS * output + min(patterns, 4 * attention.BLOCK))
    return max(maps)


def _input_bytes(config: UNetConfig) -> int:
    return config.image_size**2 * config.in_channels * 4


def _output_bytes(stage: Stage) -> int:
    return stage.resolution**2 * stage.width * 4


def _pattern_bytes(stage: Stage) -> int:
    return stage.heads * stage.resolution**4 * 4


def largest_map_size(config: Network) -> int:
    """Elements of the largest array that goes into or comes out of a convolution, for one row.

    For a traced function it is an upper bound: all that one row keeps alive.
    """
    if not isinstance(config, UNetConfig):
        return config.row_bytes // 4
    return max(max(flow.entering, flow.out) // 4 for flow in _flows(config))


class _Flow(NamedTuple):
    """Bytes of one row at a stage.

    Attributes:
      entering: what goes in: the stream and, if the stage takes one, a skip.
      out: what comes out.
      inside: what is alive at the widest point between.
      inside_precomputed: the same where the skip is precomputed, see `shared_skips`.
    """

    entering: int
    out: int
    inside: int
    inside_precomputed: int


def _flows(config: UNetConfig) -> list[_Flow]:
    """Flows of all stages on an accelerator, with convolutions in the precision that acts."""
    # A convolution by 3xTF32 holds its input as a high and a low part, which is one copy more.
    splits = 1 if devices.precision() == devices.THREE_TF32 else 0
    shrink = 2 if devices.precision() == devices.ROUNDED else 1  # rounded maps take two bytes a number
    flows, stream, skips = [], _input_bytes(config), []
    for stage in stages(config):
        out = _output_bytes(stage)
        entering = stream + (skips.pop() if stage.pop else 0)
        if stage.op == "attention":  # logits and their softmax, or queries, keys and values
            inside = 2 * stream + max(2 * _pattern_bytes(stage), 4 * stream)
        elif stage.op == "upsample":
            inside = (stream + (1 + splits) * 4 * stream + out) // shrink
        else:
            inside = _inside_block(entering, out, splits) // shrink
        # What each row takes of precomputed skips is written out, in float32.
        with_precomputed = _inside_block(stream, out, splits) // shrink + (1 + splits) * out
        flows.append(_Flow(entering, out, inside, with_precomputed))
        stream = out
        if stage.push:
            skips.append(out)
    return flows


def _inside_block(entering: int, out: int, splits: int) -> int:
    at_first_convolution = (2 + splits) * entering + (1 + splits) * out
    return max(at_first_convolution, entering + (3 + splits) * out)


def _pass_bytes_on_accelerator(config: UNetConfig, joins: Sequence[int], batch: int = 1) -> int:
    """`pass_bytes` where a stage runs all rows at once."""
    rows, peak = batch, 0
    skips: list[_Skip] = []
    for stage, flow, joining in zip(stages(config), _flows(config), joins, strict=True):
        rows += joining * batch
        inside = flow.inside
        # About as many rows have a skip of their own as had joined when it was made.
        if stage.pop and skips.pop().rows <= shared_skips.MAX_OWN_SHARE * rows:
            inside = flow.inside_precomputed
        peak = max(peak, sum(skip.row * skip.rows for skip in skips) + rows * inside)
        if stage.push:
            skips.append(_Skip(flow.out, rows))
    return peak


class _Skip(NamedTuple):
    """Bytes of one row of a skip, and the rows that had joined where it was pushed."""

    row: int
    rows: int


def pass_bytes(config: Network, joins: Sequence[int], batch: int = 1) -> int:
    """Estimated bytes alive at the widest point of a pass of `shared_prefix.forward` on one device.

    For `ddpm-celebahq-256` on a CPU with 2, 8 and 38 interventions it gives 1.1, 2.7 and 7.6 GiB, where XLA
    counted 1.03, 2.96 and 7.27.

    Args:
      joins: number of interventions that join the pass at each stage, see `shared_prefix.plan_passes`.
      batch: images in the pass.
    """
    if not isinstance(config, UNetConfig):
        return (1 + sum(joins)) * batch * row_bytes(config)
    if memory.accelerated():
        return _pass_bytes_on_accelerator(config, joins, batch)
    rows, peak, stream = batch, 0, _input_bytes(config)  # `stream` and `out` are of one row
    skips: list[_Skip] = []
    for stage, joining in zip(stages(config), joins, strict=True):
        before, rows = rows, rows + joining * batch
        out = _output_bytes(stage)
        held = sum(skip.row * skip.rows for skip in skips)
        taken = skips.pop().row if stage.pop else 0
        one_by_one = max(stream, out) > CPU_BLOCK // 2  # then rows that join here need not be copied
        entering = before * stream if one_by_one else (before + rows) * stream + rows * taken
        peak = max(peak, held + LOOP_COPIES * (entering + rows * out) + LIVE_MAPS * max(stream, out))
        if stage.push:
            skips.append(_Skip(out, rows))
        stream = out
    return peak


def gradient_bytes(config: Network) -> int:
    """Bytes that one image keeps alive between a forward pass and its gradient."""
    if not isinstance(config, UNetConfig):
        return config.gradient_bytes
    return sum(GRAD_MAPS * _output_bytes(stage) for stage in stages(config))


@functools.lru_cache
def replacement_bytes(config: Network) -> int:
    """Bytes of one replacement for every site, which are also those of the activations of one image."""
    if not isinstance(config, UNetConfig):
        return config.replacement_bytes
    params, identity = init_shapes(config)
    x = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.in_channels), "float32")
    t = jax.ShapeDtypeStruct((1,), "int32")
    run = functools.partial(forward, config, condition=conditions.example(config), capture=(CAPTURED,))
    captured = jax.eval_shape(run, params, identity, x, t)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(captured[1]))
