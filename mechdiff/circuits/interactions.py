"""Interactions of pairs of components, which ablating one component at a time does not show.

The interaction of a pair is L(without both) - L(without a) - L(without b) + L: positive if one compensates
for the ablation of the other (redundant, backup), negative if they need each other. To second order it is the
mixed second derivative of the loss in the two gates.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mechdiff.core import devices
from mechdiff.core.batches import batches
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.numerics import require_finite
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import BATCH, EvalBatch, EvalSet
from mechdiff.interventions.build import ablate, leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.provenance import result_key, store

ROWS = 64  # directions x images in one program


@functools.partial(jax.jit, static_argnames=("mesh",))
def _curvatures(
    denoiser: Examinable,
    mesh: Mesh,
    directions: PyTree,
    batch: EvalBatch,
    weights: Float[Array, " batch"],
) -> tuple[PyTree, Float[Array, ""]]:
    """H d of each direction d, H being the Hessian of the weighted loss in the gates, and that loss."""

    def local(denoiser, directions, batch, weights):
        identity = denoiser.identity
        count, images = len(next(iter(directions.values()))), len(batch.images)

        def for_each_direction(a):
            return jnp.tile(a, (count, *[1] * (a.ndim - 1)))

        rows = *batch.noised(denoiser.schedule), batch.condition, weights
        x_t, t, noise, condition, weights = jax.tree.map(for_each_direction, rows)
        directions = jax.tree.map(lambda leaf: jnp.repeat(leaf, images, axis=0), directions)
        gates = jax.tree.map(lambda leaf, d: jnp.broadcast_to(leaf, d.shape), dict(identity.gate), directions)

        def loss(gate):
            point = dataclasses.replace(identity, gate=gate)
            error = denoiser.predict(point, x_t, t, condition) - noise
            return weights @ jnp.mean(error**2, axis=tuple(range(1, error.ndim)))

        # Reverse over reverse, since the convolution on CPUs has no forward mode; directions are rows of one
        # batch and not turns of a loop, in which XLA's convolution gradients are slow.
        total, slopes = jax.vjp(jax.value_and_grad(loss), gates)
        (products,) = slopes((jnp.zeros(()), directions))
        products = jax.tree.map(lambda leaf: leaf.reshape(count, images, -1).sum(1), products)
        return jax.lax.psum((products, total[0] / count), "images")

    run = devices.map_over_images(local, mesh, (ALL, ALL, BATCH, IMAGES), ALL)
    return run(denoiser, directions, batch, weights)


def _flat(leaves: PyTree, sites: Sequence[str]) -> Float[np.ndarray, "directions units"]:
    return np.concatenate([np.asarray(leaves[site], np.float64) for site in sites], axis=1)


def pair_scores(
    denoiser: Examinable,
    eval_set: EvalSet,
    chosen: Sequence[Component],
    *,
    block: int = 16,
    folder: Path | None = None,
) -> xr.Dataset:
    """Second-order interaction of every pair of the `chosen` components under zero ablation.

    The cost grows with the number of components, not with that of pairs.

    Args:
      eval_set: images in [-1, 1], timesteps and noise, as in `ablation.ablation_sweep`.
      block: images in one program.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk.

    Returns:
      Dataset with `curvature` (second derivatives of the loss in the gates, mean over images), dims `t, a,
      b`, and `clean_loss`, dim `t`.
    """
    timesteps, count, block = eval_set.timesteps, eval_set.count, min(block, eval_set.count)
    sites, stacked = sorted(denoiser.identity.gate), leave_one_out(denoiser.identity, chosen)[1]
    flat = 1 - np.concatenate([stacked.gate[site] for site in sites], axis=1)  # components x all units
    together = min(len(chosen), max(1, ROWS // block))
    groups = [
        {site: 1 - stacked.gate[site][group.indices] for site in sites}
        for group in batches(len(chosen), together)
    ]
    mesh = devices.over(block)
    placed = devices.everywhere(mesh, denoiser)

    def compute(piece: pieces.Piece) -> dict[str, np.ndarray]:
        curvature, loss = np.zeros((1, len(chosen), len(chosen))), np.zeros(1)
        for batch in batches(count, block):
            eval_batch, weights = eval_set.batch(piece["t"].start, batch.indices), batch.weights / count
            results = [_curvatures(placed, mesh, group, eval_batch, weights) for group in groups]
            products = np.concatenate([_flat(product, sites) for product, _ in results])[: len(chosen)]
            curvature += products @ flat.T
            loss += float(results[0][1])
        return {"clean_loss": loss, "curvature": curvature}

    names = [component.name for component in chosen]
    path = None
    if folder is not None:
        decisive = {"pair_scores": digests.digest_arrays(flat), "components": names, "block": block}
        path = store(folder, result_key(denoiser, eval_set, **decisive))
    empty = pieces.unfilled(
        {"clean_loss": ("t",), "curvature": ("t", "a", "b")},
        {"t": len(timesteps), "a": len(chosen), "b": len(chosen)},
        np.float64,
    )
    title = f"scoring pairs of {denoiser.name}"
    scored = pieces.filled(empty, pieces.singles(t=len(timesteps)), compute, path, title)
    return xr.Dataset(
        {"curvature": (("t", "a", "b"), scored["curvature"]), "clean_loss": ("t", scored["clean_loss"])},
        coords={"a": names, "b": names, "t": np.asarray(timesteps)},
    )


def pair_effects(
    denoiser: Examinable,
    eval_set: EvalSet,
    pairs: Sequence[tuple[Component, Component]],
    folder: Path | None = None,
) -> xr.Dataset:
    """Exact interactions of pairs under zero ablation, image by image, with common random numbers.

    Args:
      folder: as of `pair_scores`.

    Returns:
      Dataset of losses without the first, the second and both of a pair, `without_a`, `without_b` and
      `without_both`, and their `interaction`, dims `pair, t, image`; `clean_loss`, dims `t, image`.

    Raises:
      NumericsError: losses that are NaN or Inf.
    """
    timesteps = eval_set.timesteps
    singles = {component.name: component for component in itertools.chain(*pairs)}
    ablated = [*((component,) for component in singles.values()), *pairs]
    gates = [ablate(denoiser.identity, removed).gate for removed in ablated]
    gate = {site: np.stack([np.asarray(leaves[site]) for leaves in gates]) for site in gates[0]}
    stacked = dataclasses.replace(denoiser.identity, gate=gate)
    engine = Engine(denoiser)

    def compute(piece: pieces.Piece) -> dict[str, np.ndarray]:
        losses = engine.measure(stacked, eval_set.batch(piece["t"].start))
        return {"clean_loss": losses.clean_loss[None], "loss": losses.loss[:, None]}

    path = None
    if folder is not None:
        path = store(folder, result_key(denoiser, eval_set, pair_effects=digests.digest_arrays(stacked)))
    empty = pieces.unfilled(
        {"clean_loss": ("t", "image"), "loss": ("ablated", "t", "image")},
        {"ablated": len(ablated), "t": len(timesteps), "image": eval_set.count},
    )
    title = f"running pairs of {denoiser.name}"
    measured = pieces.filled(empty, pieces.singles(t=len(timesteps)), compute, path, title)
    loss, clean = measured["loss"], measured["clean_loss"]
    require_finite(loss, denoiser.name, "ablated components and pairs")
    row_of = {name: row for row, name in enumerate(singles)}
    a, b = (loss[[row_of[pair[side].name] for pair in pairs]] for side in (0, 1))
    both, dims = loss[len(singles) :], ("pair", "t", "image")
    return xr.Dataset(
        {
            "without_a": (dims, a),
            "without_b": (dims, b),
            "without_both": (dims, both),
            "interaction": (dims, both - a - b + clean),
            "clean_loss": (dims[1:], clean),
        },
        coords={
            "a": ("pair", [a.name for a, _ in pairs]),
            "b": ("pair", [b.name for _, b in pairs]),
            "t": np.asarray(timesteps),
            "image": np.arange(eval_set.count),
        },
    )
