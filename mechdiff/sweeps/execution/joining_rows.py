"""One stage of a pass whose batch grows: the rows that join, and the intervention on each row."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mechdiff.core.config import UNetConfig
from mechdiff.core.types import AnyArray, PyTree
from mechdiff.interventions.components import has_rows, site_stage
from mechdiff.interventions.record import Intervention
from mechdiff.models.stage_modules import Stream, run_stage
from mechdiff.models.stages import Stage
from mechdiff.sweeps.execution.footprint import CPU_BLOCK


def run_rows(
    config: UNetConfig,
    stage: Stage,
    params: PyTree,
    intervention: Intervention,
    stream: Stream,
    batch: int,
    rows: int,
) -> Stream:
    """`run_stage` for all `rows`; those that join at this stage start as copies of the clean ones.

    On a CPU it runs a few rows at a time, so that activations between its layers stay in cache: a block at
    32x32 then takes half the time, one at 16x16 nine tenths. If rows run one at a time, the copies are not
    made: they would take most of the memory of a large network.
    """
    block = _block(stage, rows, *stream.h.shape[1:]) if jax.default_backend() == "cpu" else rows
    if block > 1 or rows == 1:
        stream = _joined(stage, stream, batch, rows)
    if block == rows:
        intervention = _of_images(intervention, np.arange(rows) % batch)
        return run_stage(config, stage, params, intervention, stream)[0]
    kept, taken = (stream.skips[:-1], stream.skips[-1:]) if stage.pop else (stream.skips, ())
    gates = intervention.gate, intervention.temperature, intervention.pattern, intervention.add
    leaves = (stream.h, taken, stream.embeddings, *gates)

    def run_block(start):
        def sliced(leaf):  # rows that have not joined are those of the clean pass
            first = jnp.where(start < len(leaf), start, start % batch)
            return jax.lax.dynamic_slice_in_dim(leaf, first, block)

        part = jax.tree.map(sliced, leaves)
        h, skips, embeddings, gate, temperature, pattern, add = part
        changed = dataclasses.replace(
            intervention, gate=gate, temperature=temperature, pattern=pattern, add=add
        )
        changed = _of_images(changed, (start + np.arange(block)) % batch)
        return run_stage(config, stage, params, changed, Stream(h, skips, embeddings))[0].h

    # The last block may overlap the one before it.
    starts = np.minimum(np.arange(0, rows, block), rows - block)
    parts = jax.lax.map(run_block, starts)
    h = parts.reshape(-1, *parts.shape[2:])
    if repeated := len(h) - rows:
        h = jnp.concatenate([h[:-block], h[repeated - block :]])
    return Stream(h, (*kept, h) if stage.push else kept, stream.embeddings)


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
    """Rows of a stage that run at a time: as many as `CPU_BLOCK` holds, or fewer that divide better."""
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
