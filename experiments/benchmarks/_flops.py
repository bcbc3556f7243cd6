"""FLOPs: of a forward pass, the fewest that a sweep needs, and how many the machine does a second."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _harness
from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.interventions.record import Intervention, stack_size
from mechdiff.models.stage_modules import can_precompute_skip, enter, precompute_skip, run_stage
from mechdiff.models.stages import stages
from mechdiff.sweeps.execution.shared_prefix import plan_passes


def of_stages(config: UNetConfig, params: PyTree, identity: Intervention) -> list[int]:
    """FLOPs of every stage for one image: those of convolutions and matrix products, padding included.

    Args:
      params, identity: arrays, or their shapes.
    """
    x = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    stream = jax.eval_shape(lambda params, x, t: enter(config, params, x, t), params, x, t)
    flops = []
    for stage in stages(config):

        def step(params, identity, stream, stage=stage):
            return run_stage(config, stage, params, identity, stream)[0]

        flops.append(of_jaxpr(jax.make_jaxpr(step)(params, identity, stream).jaxpr))
        stream = jax.eval_shape(step, params, identity, stream)
    return flops


def needed(
    config: UNetConfig, params: PyTree, identity: Intervention, flops: list[int], stacked: Intervention
) -> int:
    """FLOPs for one image under a stack of interventions when nothing is computed twice: the clean pass, of
    every intervention what comes after it has joined, and precomputed skips once for each that differs.

    Args:
      flops: `of_stages`.
    """
    rest = np.cumsum(flops[::-1])[::-1]
    plan = plan_passes(config, stacked, stack_size(stacked))
    whole = rest[0] + sum(joining * rest[depth] for depth, joining in enumerate(plan.joins))
    joined, made, channels, saved = np.cumsum(plan.joins), [], config.in_channels, 0
    for depth, stage in enumerate(stages(config)):
        if stage.pop:
            source = made.pop()
            sharing = joined[depth] - joined[source] - plan.changed_skips[depth]
            if can_precompute_skip(config, stage, params, channels):
                skip = stages(config)[source]
                shape = jax.ShapeDtypeStruct((1, skip.resolution, skip.resolution, skip.width), jnp.float32)

                def precompute(params, identity, skip, stage=stage, channels=channels):
                    return precompute_skip(config, stage, params, identity, skip, channels)

                saved += sharing * of_jaxpr(jax.make_jaxpr(precompute)(params, identity, shape).jaxpr)
        if stage.push:
            made.append(depth)
        channels = stage.width
    return int(whole - saved)


def ceiling() -> str:
    """One line: the speed of plain matrix products, one on every device at once."""
    side, count = _harness.PRODUCT, len(jax.local_devices())
    mesh = devices.over(count)

    def square(a):
        return jnp.matmul(a, a, precision=devices.precision())

    multiply = jax.shard_map(square, mesh=mesh, in_specs=devices.IMAGES, out_specs=devices.IMAGES)
    run, ones = jax.jit(multiply), devices.shared(mesh, np.ones((count, side, side), np.float32))
    speed = 2 * count * side**3 / _harness.seconds(lambda: run(ones).block_until_ready()) / 1e9
    return f"ceiling: product of {side} x {side} float32 matrices, {count} device(s): {speed:.0f} GF/s"


def of_jaxpr(jaxpr: Any) -> int:
    """FLOPs of all matrix products and convolutions; a loop's body counts once a turn."""
    total = 0
    for equation in jaxpr.eqns:
        out = int(np.prod(equation.outvars[0].aval.shape))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * out * int(np.prod([shape[axis] for axis in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * int(np.prod(kernel)) // outputs
        turns = equation.params.get("length", 1)
        total += turns * sum(of_jaxpr(inner) for inner in _inside(equation.params))
    return total


def _inside(params: dict) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)  # a closed one holds its constants beside it
            if hasattr(part, "eqns"):
                yield part
