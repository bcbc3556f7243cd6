"""Interventions as pytrees: the record, and its restriction to a window of timesteps.

An intervention does not modify the network: it is an argument of it. Its arrays are built in NumPy, so that
building thousands of them compiles nothing.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, PyTree, Timesteps
from mechdiff.interventions.sealed import Sealed

ALWAYS = np.array([0, np.iinfo(np.int32).max], np.int32)


@dataclasses.dataclass(frozen=True)
class Intervention:
    """What is done at every site; the identity has gates 1, temperatures 1 and replacements 0.

    Attributes:
      gate: site -> `(units,)`; 1 leaves a unit unchanged, 0 replaces it, other values mix both.
      replacement: site -> replacement value, broadcastable to one row of the site's activation.
      temperature: attention site -> `(heads,)`, > 0.
      window: `(2,)` int32, half-open interval of t in which the intervention acts.
      pattern: attention site -> `(heads,)`; 1 leaves a head's pattern unchanged, 0 replaces it. Patterns are
        mixed at the sites named here only, a matter of the pytree's structure, not of the values.
      pattern_replacement: the sites of `pattern` -> replacement patterns, `(heads, queries, keys)`, with 1
        for heads or queries that share one.
      add: site -> direction that is added after the gate, broadcastable to one row of the site's activation,
        in a UNet's of as many channels; absent where nothing is added.

    Any leaf may have a leading row axis as long as the batch. Leaves are NumPy or JAX arrays, or what a
    transformation puts in their place, such as the axes of `STACKED`. Neither dicts nor NumPy arrays (which
    are copied) can be changed in place: a compiled function that closes over an intervention would not see
    it. Pass changed copies to `dataclasses.replace`.

    Raises:
      ConfigError: a temperature that is not above 0 (values of tracers are not known).

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
        _check_temperatures(self.temperature)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, read_only(getattr(self, field.name)))

    def __repr__(self) -> str:
        from mechdiff.interventions.describe import describe  # here, since that module imports this one

        return f"Intervention({describe(self)})"

    def __reduce__(self):  # so that copies and pickles go through the constructor too
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))


FIELDS = tuple(field.name for field in dataclasses.fields(Intervention))


def _flatten(intervention: Intervention) -> tuple[list, None]:
    """The fields, dicts as plain ones, so that the structure is that of any dict of the same sites."""
    values = [getattr(intervention, name) for name in FIELDS]
    plain = [dict(value) if isinstance(value, Sealed) else value for value in values]
    return [(jax.tree_util.GetAttrKey(name), value) for name, value in zip(FIELDS, plain, strict=True)], None


def _unflatten(_: None, values: Iterable) -> Intervention:
    """Without the checks of the constructor: gradients, too, come in the shape of an intervention."""
    made = object.__new__(Intervention)
    for name, value in zip(FIELDS, values, strict=True):
        object.__setattr__(made, name, read_only(value))
    return made


jax.tree_util.register_pytree_with_keys(Intervention, _flatten, _unflatten)


def _check_temperatures(temperature: PyTree) -> None:
    for site, leaf in temperature.items() if isinstance(temperature, dict) else ():
        if not has_numbers(leaf):
            continue
        values = np.asarray(leaf)
        if not (values > 0).all():
            wrong = values[~(values > 0)][0]
            raise ConfigError(f"temperature={wrong} of site {site!r} must be above 0; 1 leaves it unchanged")


def has_numbers(leaf: PyTree) -> bool:
    """Whether it is an array whose numbers are known here: no tracer, none that lies with other processes."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, np.ndarray | jax.Array):
        return False
    here = isinstance(leaf, np.ndarray) or leaf.is_fully_addressable
    return here and jnp.issubdtype(leaf.dtype, np.number)


def read_only(tree: PyTree) -> PyTree:
    """`tree`, a leaf or a dict of leaves, sealed: NumPy arrays that could be written, also through an array
    that they are a view of, are copied."""
    if isinstance(tree, dict):
        return Sealed({name: read_only(leaf) for name, leaf in tree.items()})
    if not isinstance(tree, np.ndarray) or _is_fixed(tree):
        return tree
    copied = tree.copy()
    copied.flags.writeable = False
    return copied


def _is_fixed(memory: object) -> bool:
    """Whether nothing can write to an array, nor to what it is a view of: bytes, read-only or JAX arrays."""
    if isinstance(memory, memoryview):  # such as NumPy's view of an array of JAX, which never changes
        return memory.readonly and isinstance(memory.obj, jax.Array)
    if not isinstance(memory, np.ndarray):
        return memory is None or isinstance(memory, bytes)
    return not memory.flags.writeable and _is_fixed(memory.base)


# vmap axes of the stacks that `leave_one_out` and `random_subsets` return: only gates are stacked
STACKED = Intervention(
    gate=0, replacement=None, temperature=None, window=None, pattern=None, pattern_replacement=None, add=None
)


def rows(intervention: Intervention, start: int, stop: int) -> Intervention:
    """Interventions `start` to `stop - 1` of a stack (only its gates are stacked, as in `STACKED`)."""
    return dataclasses.replace(intervention, gate={k: v[start:stop] for k, v in intervention.gate.items()})


def stack_size(stacked: Intervention) -> int:
    """Number of interventions in a stack: the length of its gates."""
    return len(next(iter(stacked.gate.values())))


def in_window(intervention: Intervention, t: Timesteps) -> Intervention:
    """The intervention as it acts at `t`, `(batch,)`: per-row gates, temperatures and pattern gates,
    which are 1 in rows whose t is outside the window.

    One whose window is the NumPy constant `ALWAYS` is returned as it is, so that XLA can drop the gates of an
    identity.
    """
    if isinstance(intervention.window, np.ndarray) and np.array_equal(intervention.window, ALWAYS):
        return intervention
    inside = _inside(intervention, t)
    multipliers = intervention.gate, intervention.temperature, intervention.pattern
    acting = jax.tree.map(lambda leaf: jnp.where(inside[:, None], leaf, 1.0), multipliers)
    return dataclasses.replace(intervention, gate=acting[0], temperature=acting[1], pattern=acting[2])


def directions_in_window(
    intervention: Intervention, t: Timesteps, ranks: Mapping[str, int]
) -> dict[str, AnyArray]:
    """The directions (`add`) as they act at `t`, `(batch,)`: one per row, 0 outside the window.

    Args:
      ranks: site -> number of axes of one row of its activation; a direction with one more has rows.
    """
    inside = _inside(intervention, t)
    return {site: _acting(inside, leaf, ranks[site]) for site, leaf in intervention.add.items()}


def _inside(intervention: Intervention, t: Timesteps) -> Bool[Array, " batch"]:
    window = jnp.asarray(intervention.window)
    return (t >= window[..., 0]) & (t < window[..., 1])


def _acting(inside: AnyArray, leaf: AnyArray, rank: int) -> AnyArray:
    rows_first = leaf if jnp.ndim(leaf) > rank else jnp.asarray(leaf)[None]
    return jnp.where(inside.reshape(-1, *[1] * rank), rows_first, 0.0)
