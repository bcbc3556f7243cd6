"""One stage of a pass whose batch grows: the rows that join, and the intervention on each row."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mechdiff.core.config import UNetConfig
from mechdiff.core.types import AnyArray, PyTree
from mechdiff.interventions.components import has_rows, site_stage
from mechdiff.interventions.record import Intervention
from mechdiff.models.precomputed_skips import PrecomputedSkip
from mechdiff.models.stage_modules import Stream, can_precompute_skip, precompute_skip, run_stage
from mechdiff.models.stages import Stage
from mechdiff.sweeps.execution import shared_skips
from mechdiff.sweeps.execution.footprint import CPU_BLOCK


def run_rows(
    config: UNetConfig,
    stage: Stage,
    params: PyTree,
    intervention: Intervention,
    stream: Stream,
    batch: int,
    rows: int,
    changed_skips: int | None = None,
) -> Stream:
    """`run_stage` for all `rows`; those that join at this stage start as copies of the clean ones.

    On a CPU it runs a few rows at a time, so that activations between its layers stay in cache: a block at
    32x32 then takes half the time, one at 16x16 nine tenths. If rows run one at a time, the copies are not
    made: they would take most of the memory of a large network.

    Args:
      changed_skips: of `PassPlan`, for this stage; None: every row's skip is computed anew.
    """
    block, precomputed = _block(stage, rows, *stream.h.shape[1:]), None
    channels = stream.h.shape[-1]
    if stage.pop and changed_skips is not None and can_precompute_skip(config, stage, params, channels):
        made = len(stream.skips[-1])
        if made + changed_skips * batch <= shared_skips.MAX_OWN_SHARE * rows:
            own = shared_skips.find_own(stage, intervention, batch, rows, made, changed_skips)
            precomputed = _precomputed_skips(config, stage, params, intervention, stream, batch, own.rows)
            stream = stream._replace(skips=(*stream.skips[:-1], own.of_each_row))
    if block > 1 or rows == 1:
        stream = _joined(stage, stream, batch, rows)
    kept, taken = (stream.skips[:-1], stream.skips[-1:]) if stage.pop else (stream.skips, ())
    gates = intervention.gate, intervention.temperature, intervention.pattern, intervention.add

    def run_block(leaves, images):
        h, skips, embeddings, gate, temperature, pattern, add = leaves
        if precomputed is not None:
            skips = (shared_skips.of_rows(precomputed, *skips),)
        changed = dataclasses.replace(
            intervention, gate=gate, temperature=temperature, pattern=pattern, add=add
        )
        changed = _of_images(changed, images)
        return run_stage(config, stage, params, changed, Stream(h, skips, embeddings))[0].h

    h = _in_blocks(run_block, (stream.h, taken, stream.embeddings, *gates), batch, rows, block)
    return Stream(h, (*kept, h) if stage.push else kept, stream.embeddings)


def _precomputed_skips(
    config: UNetConfig,
    stage: Stage,
    params: PyTree,
    intervention: Intervention,
    stream: Stream,
    batch: int,
    own: Int[Array, " own"],
) -> PrecomputedSkip:
    """The precomputed skips of the rows that have one of their own: see `shared_skips`."""
    skip, gates = stream.skips[-1], shared_skips.at_skip(stage, intervention, own)
    skip = extended(skip, batch, len(own))

    def run_block(leaves, images):
        skip, gate, add = leaves
        changed = _of_images(dataclasses.replace(gates, gate=gate, add=add), images)
        return precompute_skip(config, stage, params, changed, skip, stream.h.shape[-1])

    block = _block(stage, len(own), *skip.shape[1:])
    return _in_blocks(run_block, (skip, gates.gate, gates.add), batch, len(own), block)


def _in_blocks(
    run: Callable[[PyTree, Int[AnyArray, " block"]], PyTree],
    leaves: PyTree,
    batch: int,
    rows: int,
    block: int,
) -> PyTree:
    """`run` for all `rows`, `block` at a time: a function of their leaves and their images."""
    if block == rows:
        return run(leaves, np.arange(rows) % batch)

    def run_block(start):
        def sliced(leaf):  # rows that have not joined are those of the clean pass
            first = jnp.where(start < len(leaf), start, start % batch)
            return jax.lax.dynamic_slice_in_dim(leaf, first, block)

        return run(jax.tree.map(sliced, leaves), (start + np.arange(block)) % batch)

    def in_order(blocks):
        flat = blocks.reshape(-1, *blocks.shape[2:])
        repeated = len(flat) - rows
        return jnp.concatenate([flat[:-block], flat[repeated - block :]]) if repeated else flat

    # The last block may overlap the one before it.
    starts = np.minimum(np.arange(0, rows, block), rows - block)
    return jax.tree.map(in_order, jax.lax.map(run_block, starts))


def _of_images(intervention: Intervention, images: Int[AnyArray, " rows"]) -> Intervention:
    """Replacements that differ between images, taken for each row from its image."""
    return dataclasses.replace(
        intervention,
        replacement=_taken(intervention.replacement, images),
        pattern_replacement=_taken(intervention.pattern_replacement, images),
    )


def _taken(replacements: PyTree, images: Int[AnyArray, " rows"]) -> PyTree:
    return {
        site: jnp.take(replacement, images, axis=0) if has_rows(site, replacement) else replacement
        for site, replacement in replacements.items()
    }


def _block(stage: Stage, rows: int, *shape: int) -> int:
    """Rows of a stage that run at a time: on a CPU as many as `CPU_BLOCK` holds, or fewer that divide better;
    elsewhere all."""
    if jax.default_backend() != "cpu":
        return rows
    most = max(1, CPU_BLOCK // (4 * max(stage.resolution**2 * stage.width, math.prod(shape))))
    if rows <= most:
        return rows
    # The least overlap of the last block with the one before it; of equal ones the largest.
    return min(range((most + 1) // 2, most + 1), key=lambda block: (-rows % block, -block))


def _joined(stage: Stage, stream: Stream, batch: int, rows: int) -> Stream:
    """The stream with all `rows`: one per image for the clean pass and each intervention that has joined."""
    skips = stream.skips
    if stage.pop:  # skips pushed before an intervention joined are those of the clean pass
        skips = (*skips[:-1], extended(skips[-1], batch, rows))
    embeddings = jax.tree.map(lambda a: extended(a, batch, rows), stream.embeddings)
    return Stream(extended(stream.h, batch, rows), skips, embeddings)


def extended(a: Array, batch: int, rows: int) -> Array:
    """`a` with copies of its first `batch` rows behind it, `rows` rows in all."""
    copies = (rows - a.shape[0]) // batch
    return jnp.concatenate([a, jnp.tile(a[:batch], (copies, *[1] * (a.ndim - 1)))]) if copies else a


def rows_at_stage(stage: Stage, stacked: Intervention, batch: int, joined: int) -> Intervention:
    """The intervention at one stage, with one leaf per row: the identity's for the clean rows."""
    scales = functools.partial(_per_row, batch=batch, joined=joined, identity=1.0)
    directions = functools.partial(_per_row, batch=batch, joined=joined, identity=0.0)
    return dataclasses.replace(
        stacked,
        gate=jax.tree.map(scales, _of_stage(stage, stacked.gate)),
        temperature=jax.tree.map(scales, _of_stage(stage, stacked.temperature)),
        pattern=jax.tree.map(scales, _of_stage(stage, stacked.pattern)),
        add=jax.tree.map(directions, _of_stage(stage, stacked.add)),
        replacement=_of_stage(stage, stacked.replacement),
        pattern_replacement=_of_stage(stage, stacked.pattern_replacement),
    )


def _of_stage(stage: Stage, leaves: PyTree) -> PyTree:
    return {site: leaf for site, leaf in leaves.items() if site_stage(site) == stage.name}


def _per_row(leaf: Array, batch: int, joined: int, identity: float) -> Array:
    """The identity's value for the clean rows, then that of each intervention that has joined."""
    clean = jnp.full((1, *leaf.shape[1:]), identity, leaf.dtype)
    return jnp.repeat(jnp.concatenate([clean, leaf[:joined]]), batch, axis=0)
