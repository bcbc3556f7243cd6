"""The compiled program of a sweep: passes of interventions over blocks of images, and their reduction.

Each device maps over its share, one pass and one block of images at a time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff.core import devices
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.types import PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.sweeps.execution.layout import REPLACEMENTS

PASSES = PartitionSpec("passes")


class SweepLosses(NamedTuple):
    """Denoising losses of images under interventions, on the host.

    Attributes:
      loss: mean squared error of the predicted noise under each intervention.
      change: mean squared change of the prediction.
      clean_loss: without intervention.
    """

    loss: Float[np.ndarray, "interventions images"]
    change: Float[np.ndarray, "interventions images"]
    clean_loss: Float[np.ndarray, " images"]


class PassOutputs(NamedTuple):
    """The outputs of one pass, on the device: the argument of a reduction.

    Attributes:
      schedule: noise schedule of the denoiser.
      t: timestep of the pass.
      x0, noise, x_t: clean images, their noise, and the noised images.
      clean: predicted noise without intervention.
      eps: predicted noise under each intervention of the pass.
      per_image: arrays of the caller for each image (leaves `(batch, ...)`); None: nothing.
      shared: arrays of the caller for all images; None: nothing.
    """

    schedule: NoiseSchedule
    t: Int[Array, ""]
    x0: Float[Array, "batch height width channels"]
    noise: Float[Array, "batch height width channels"]
    x_t: Float[Array, "batch height width channels"]
    clean: Float[Array, "batch height width channels"]
    eps: Float[Array, "interventions batch height width channels"]
    per_image: PyTree
    shared: PyTree


# Returns leaves (interventions, batch, ...) and (batch, ...).
Reduction = Callable[[PassOutputs], tuple[PyTree, PyTree]]


class ImageInputs(NamedTuple):
    """Inputs that differ between images: leaves `(blocks, block, ...)`.

    Attributes:
      x0, indices, condition: `images`, `indices` and `condition` of `EvalBatch`.
      replacements: `replacement` and `pattern_replacement` at sites where they differ between images.
      per_image: for the reduction.
    """

    x0: Float[Array, "blocks block height width channels"]
    indices: Int[Array, "blocks block"]
    condition: PyTree
    replacements: dict[str, PyTree]
    per_image: PyTree


class CommonInputs(NamedTuple):
    """Inputs that all images share.

    Attributes:
      t, key: as in `EvalBatch`.
      replacements: `replacement` and `pattern_replacement` at sites where all images share them.
      shared: for the reduction.
    """

    t: int | Int[Array, ""]
    key: PRNGKey
    replacements: dict[str, PyTree]
    shared: PyTree


def losses(outputs: PassOutputs) -> tuple[tuple[Array, Array], Array]:
    """Loss and change under each intervention, and the clean loss: see `SweepLosses`."""
    ablated = _mean_square(outputs.eps - outputs.noise), _mean_square(outputs.eps - outputs.clean)
    return ablated, _mean_square(outputs.clean - outputs.noise)


def _mean_square(x: Float[Array, "*rows height width channels"]) -> Float[Array, "*rows"]:
    return jnp.mean(x * x, axis=(-3, -2, -1))


@functools.partial(jax.jit, static_argnames=("joins", "changed_skips", "mesh", "reduction"))
def run_passes(
    denoiser: Examinable,
    stacked: Intervention,
    images: ImageInputs,
    common: CommonInputs,
    *,
    joins: tuple[int, ...],
    changed_skips: tuple[int, ...],
    mesh: Mesh,
    reduction: Reduction,
) -> tuple[PyTree, PyTree]:
    """Runs every intervention on every image, and reduces the predictions.

    Args:
      stacked: interventions without replacements, leaves `(passes, rows, ...)`.
      joins, changed_skips: of `shared_prefix.plan_passes`.
      mesh: devices, passes x images.
    Returns:
      Results of `reduction`: leaves `(passes, rows, blocks, block, ...)` and `(passes, blocks, block, ...)`.
    """

    def local(denoiser, stacked, images, common):
        run_block = functools.partial(_run_block, denoiser, joins, changed_skips, reduction, stacked, common)
        changed, clean = jax.lax.map(run_block, images)
        # `map` puts the axis of blocks first; it must be where the images are sharded.
        changed = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), changed)
        return changed, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), clean)

    outs = PartitionSpec("passes", None, "images"), PartitionSpec("passes", "images")
    run = devices.map_over_images(local, mesh, (ALL, PASSES, IMAGES, ALL), outs)
    return run(denoiser, stacked, images, common)


def _run_block(
    denoiser: Examinable,
    joins: tuple[int, ...],
    changed_skips: tuple[int, ...],
    reduction: Reduction,
    stacked: Intervention,
    common: CommonInputs,
    images: ImageInputs,
) -> tuple[PyTree, PyTree]:
    """All passes over one block of images, one at a time."""
    batch = EvalBatch(images.x0, images.indices, common.t, common.key, images.condition)
    x_t, _, noise = batch.noised(denoiser.schedule)
    replacements = {name: common.replacements[name] | images.replacements[name] for name in REPLACEMENTS}

    def run_pass(stacked: Intervention) -> tuple[PyTree, PyTree]:
        stacked = dataclasses.replace(stacked, **replacements)
        clean, eps = shared_prefix.forward(
            denoiser, joins, stacked, x_t, common.t, images.condition, changed_skips
        )
        outputs = PassOutputs(
            denoiser.schedule,
            common.t,
            x0=images.x0,
            noise=noise,
            x_t=x_t,
            clean=clean,
            eps=eps,
            per_image=images.per_image,
            shared=common.shared,
        )
        return reduction(outputs)

    return jax.lax.map(run_pass, stacked)
