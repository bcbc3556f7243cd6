"""Rows of a pass that share a skip: what a block computes of it alone is computed once for them.

Skips are made by the encoder. Rows that join after one was made have that of the clean pass, unless their
intervention changes it on its way: of a leave-one-out sweep nearly all rows of the late, large stages.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mechdiff.interventions.record import Intervention
from mechdiff.models.precomputed_skips import PrecomputedSkip
from mechdiff.models.stages import Stage

# Skips are precomputed if at most this share of the rows has one of its own. With more, little is saved,
# and the stage takes longer to compile.
MAX_OWN_SHARE = 0.5


class OwnSkips(NamedTuple):
    """Rows with a skip of their own.

    Attributes:
      rows: the rows of the pass, `batch` for the clean pass and each intervention.
      of_each_row: for every row of the pass, the index in `rows` of the one whose skip it has.
    """

    rows: Int[Array, " own"]
    of_each_row: Int[Array, " rows"]


def find_own(
    stage: Stage, intervention: Intervention, batch: int, rows: int, made: int, changed: int
) -> OwnSkips:
    """The rows that had joined when a skip was made, and those whose intervention changes it.

    Args:
      intervention: at this stage, leaves with `rows` rows.
      made: rows that the skip has.
      changed: at least the number of interventions that change it among those that joined later; if it were
        less, some of them would act on nothing.
    """
    joined, before = rows // batch, made // batch
    late = _changes_skip(stage, intervention, batch) & (np.arange(joined) >= before)
    which = jnp.nonzero(late, size=changed, fill_value=joined)[0]  # the surplus is out of range
    in_own = jnp.zeros(joined, jnp.int32).at[:before].set(np.arange(before))
    in_own = in_own.at[which].set(before + np.arange(changed), mode="drop")
    own = jnp.concatenate([np.arange(before), jnp.minimum(which, joined - 1)])
    return OwnSkips(_rows_of(own, batch), _rows_of(in_own, batch))


def at_skip(stage: Stage, intervention: Intervention, rows: Int[Array, " own"]) -> Intervention:
    """What of an intervention acts on the skip of a stage, for some of its rows.

    Replacements stay as they are.
    """
    site = f"{stage.name}.skip"
    return dataclasses.replace(
        intervention,
        gate={site: intervention.gate[site][rows]},
        add={name: leaf[rows] for name, leaf in intervention.add.items() if name == site},
        replacement={site: intervention.replacement[site]},
        temperature={},
        pattern={},
        pattern_replacement={},
    )


def _changes_skip(stage: Stage, intervention: Intervention, batch: int) -> Bool[Array, " joined"]:
    """Whether the clean pass (never) and each intervention that has joined changes the skip of a stage."""
    site = f"{stage.name}.skip"
    changes = (intervention.gate[site][::batch] != 1).any(axis=-1)
    if site in intervention.add:
        direction = intervention.add[site][::batch]
        changes |= (direction != 0).reshape(len(direction), -1).any(axis=-1)
    return changes


def _rows_of(indices: Int[Array, " joined"], batch: int) -> Int[Array, " rows"]:
    """The rows of the clean pass and interventions: each has `batch`, one for each image."""
    return (indices[:, None] * batch + np.arange(batch)).reshape(-1)


def of_rows(precomputed: PrecomputedSkip, rows: Int[Array, " rows"]) -> PrecomputedSkip:
    """What each of some rows takes: `rows` are indices of the precomputed ones."""
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), precomputed)
