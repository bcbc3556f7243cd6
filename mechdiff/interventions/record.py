"""Interventions as pytrees: the record, and what of it acts at a timestep.

An intervention never touches the network: it is an argument of it. Arrays are made in NumPy, so
building thousands costs no compilation.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core.types import AnyArray, PyTree, Timesteps

ALWAYS = np.array([0, np.iinfo(np.int32).max], np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Intervention:
    """What is done to every site; the identity has gates 1, temperatures 1 and replacements 0.

    Attributes:
      gate: site -> `(units,)`; 1 leaves a unit alone, 0 replaces it, others scale it.
      replacement: site -> what replaces it, broadcastable to one row of the site's activation.
      temperature: attention site -> `(heads,)`, > 0.
      window: `(2,)` int32, half-open interval of t in which the intervention acts.
      pattern: attention site -> `(heads,)`; 1 leaves a head's pattern alone, 0 replaces it. Only the sites
        named here are looked at: by the structure of the pytree, whatever the values.
      pattern_replacement: the sites of `pattern` -> what replaces patterns, `(heads, queries, keys)` or 1 for
        heads or queries that share it.
      add: site -> direction that is added after the gate, a' = a + add, broadcastable to one row of the
        site's activation; absent where nothing is added.
    Any leaf may have a leading row axis as long as the batch. Leaves are arrays of NumPy or JAX, or
    whatever a transformation puts in their place, such as the axes of `STACKED`. Arrays of NumPy are
    read-only views: a compiled function that closes over an intervention would not see an edit. Copy an
    array, change the copy, and give it to `dataclasses.replace`.

    Example:
      >>> gates, zeros = {"mid.res": np.ones(1)}, {"mid.res": np.zeros((1, 1, 1))}
      >>> identity = Intervention(gates, zeros, {}, ALWAYS)
      >>> dataclasses.replace(identity, gate={"mid.res": np.zeros(1)})
      Intervention(zero: mid.res)
    """

    gate: PyTree
    replacement: PyTree
    temperature: PyTree
    window: PyTree
    pattern: PyTree = dataclasses.field(default_factory=dict)
    pattern_replacement: PyTree = dataclasses.field(default_factory=dict)
    add: PyTree = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, read_only(getattr(self, field.name)))

    def __repr__(self) -> str:
        from mechdiff.interventions.describe import describe  # which names components of this record

        return f"Intervention({describe(self)})"

    def __reduce__(self):  # copies and pickles come by the constructor too
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def read_only(tree: PyTree) -> PyTree:
    """`tree`, a leaf or a dict of leaves, with views that can't be written to in place of NumPy arrays."""
    if isinstance(tree, dict):
        return {name: read_only(leaf) for name, leaf in tree.items()}
    if not isinstance(tree, np.ndarray) or not tree.flags.writeable:
        return tree
    view = tree.view()
    view.flags.writeable = False
    return view


# vmap axes of what `leave_one_out` and `random_subsets` return: only gates are stacked
STACKED = Intervention(
    gate=0, replacement=None, temperature=None, window=None, pattern=None, pattern_replacement=None, add=None
)


def rows(intervention: Intervention, start: int, stop: int) -> Intervention:
    """Interventions `start` to `stop` of a stack, by `STACKED`."""
    return dataclasses.replace(intervention, gate={k: v[start:stop] for k, v in intervention.gate.items()})


def in_window(intervention: Intervention, t: Timesteps) -> Intervention:
    """The intervention as it acts at `t`: gates, temperatures and patterns per row, 1 outside the window.

    One that is known to act always stays as it is, so that XLA can drop the gates of an identity.
    """
    if isinstance(intervention.window, np.ndarray) and np.array_equal(intervention.window, ALWAYS):
        return intervention
    window = jnp.asarray(intervention.window)
    inside = (t >= window[..., 0]) & (t < window[..., 1])

    multipliers = intervention.gate, intervention.temperature, intervention.pattern
    acting = jax.tree.map(lambda leaf: jnp.where(inside[:, None], leaf, 1.0), multipliers)
    return dataclasses.replace(intervention, gate=acting[0], temperature=acting[1], pattern=acting[2])


def directions_in_window(
    intervention: Intervention, t: Timesteps, ranks: Mapping[str, int]
) -> dict[str, AnyArray]:
    """The directions (`add`) as they act at `t`: per row, 0 outside the window.

    Args:
      ranks: site -> axes of one row of its activation; a direction with one more has rows.
    """
    window = jnp.asarray(intervention.window)
    inside = (t >= window[..., 0]) & (t < window[..., 1])
    return {site: _acting(inside, leaf, ranks[site]) for site, leaf in intervention.add.items()}


def _acting(inside: AnyArray, leaf: AnyArray, rank: int) -> AnyArray:
    rows_first = leaf if jnp.ndim(leaf) > rank else jnp.asarray(leaf)[None]
    return jnp.where(inside.reshape(-1, *[1] * rank), rows_first, 0.0)
