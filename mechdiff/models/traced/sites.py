"""Finds the sites of a function by tracing it: their names, shapes, and axes of rows and units.

A value in the body of a scan is one site for each turn (iteration) of the scan.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.interventions.components import PATTERN, full_matches, site_type
from mechdiff.models.traced.interpreter import RULES, cannot_enter
from mechdiff.models.traced.liveness import reaching
from mechdiff.models.traced.programs import BRANCHES, Naming, walk

AXIS = re.compile(r"(?P<site>.+)@(?P<axis>-?\d+)")  # a name that says the axis of its units
TURN = "*"  # in a name, stands for the number of a scan's turn
ADD_A_NAME = (
    "name a value where your network computes it: `from jax.ad_checkpoint import checkpoint_name`, then "
    '`h = checkpoint_name(h, "block0.mlp")`, and go on with that h'
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A named value of a traced function.

    Attributes:
      tag: the name in the program.
      names: the sites' names in interventions, one for each turn of the scans that contain it, the last scan
        varying fastest; one if there is no scan.
      turns: lengths of those scans, the outermost first.
      order_keys: of `names`; sorted, they are in the order of execution.
      shape: of the value, rows moved to the front, at the number of rows that it was traced with.
      dtype: of the value.
      row_axis: axis of the value that the batch runs along.
      unit_axis: negative axis of `shape` that has one gate per unit.
      path: primitives that contain it, such as `("jit", "scan")`.
    """

    tag: str
    names: tuple[str, ...]
    turns: tuple[int, ...]
    order_keys: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: str
    row_axis: int
    unit_axis: int
    path: tuple[str, ...]

    @property
    def gate_count(self) -> int:
        """Number of gates per turn."""
        return self.shape[self.unit_axis]


def discover(
    fn: Callable[..., Any], args_of: Callable[[int], tuple], unit_axes: Mapping[str, int]
) -> tuple[tuple[Site, ...], tuple[ClosedJaxpr, ClosedJaxpr]]:
    """The sites of `fn`, in order of execution, and its programs at both numbers of `ROWS`.

    It is traced twice, at two numbers of rows, so that the axis of rows is known, not guessed.

    Args:
      args_of: number of rows -> arguments of `fn`, as `jax.ShapeDtypeStruct`s or arrays.
      unit_axes: regular expression (full match of a name) -> axis of the units, rows counted as axis 0; for
        names that don't say it themselves, as `mid.head@-3` does. The last axis if neither does.
    Raises:
      ConfigError: no names, a name used twice, a name that no output depends on, a name where edits can't
        follow, a value without rows or with a bad axis; `unit_axes` that match nothing.

    Example:
      >>> import jax
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> def fn(x):
      ...     return checkpoint_name(2 * x, "twice")
      >>> sites, _ = discover(fn, lambda rows: (jax.ShapeDtypeStruct((rows, 3), "float32"),), {})
      >>> sites[0].names, sites[0].gate_count
      (('twice',), 3)
    """
    programs = tuple(jax.make_jaxpr(fn)(*args_of(rows)) for rows in ROWS)
    tags, others = (_by_name(walk(program)) for program in programs)
    if not tags:
        raise ConfigError(f"no value of this function has a name; {ADD_A_NAME}")
    _, reached = reaching(programs[0])
    for name in tags:
        if name not in reached:
            raise ConfigError(
                f"the result does not depend on site {name!r}: use what checkpoint_name returns, "
                f"`h = checkpoint_name(h, {name!r})`"
            )
    _check_axes(unit_axes, tags)
    sites = tuple(_site(naming, others.get(name), unit_axes) for name, naming in tags.items())
    return sites, programs


ROWS = (8, 16)  # numbers of rows at which a function is traced; a mesh can split them


def _by_name(namings: Iterable[Naming]) -> dict[str, Naming]:
    firsts: dict[str, Naming] = {}
    for naming in namings:
        name, shape = naming.name, naming.aval.shape
        if not _plain(name)[0]:
            raise ConfigError(
                f"a value of shape {shape} has the name {name!r}; give it one such as 'block0.mlp'"
            )
        refused = [step for step in naming.path if step.split(":")[0] not in RULES]
        if refused:
            raise ConfigError(cannot_enter(name, refused[0]))
        first = firsts.setdefault(name, naming)
        if first is not naming and not _alternatives(first.path, naming.path):
            raise ConfigError(
                f"site {name!r} is named twice; give every value a name of its own "
                "(a module applied twice, or a name given to several arrays, names twice)"
            )
        if first.aval.shape != shape:
            raise ConfigError(
                f"site {name!r} has shape {first.aval.shape} in one branch and {shape} in another; "
                "give them two names"
            )
    return firsts


def _alternatives(path: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two paths diverge at a `cond`, so that at most one of them is taken."""
    for step, other_step in zip(path, other, strict=False):
        if step != other_step:
            return step.split(":")[0] == other_step.split(":")[0] == BRANCHES
    return False


def _check_axes(unit_axes: Mapping[str, int], tags: Iterable[str]) -> None:
    names = [_plain(name)[0] for name in tags]
    for pattern in unit_axes:
        if not any(_matches(pattern, name) for name in names):
            raise ConfigError(unknown("site of unit_axes", pattern, names))


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or bool(full_matches(pattern, [name]))


def _plain(name: str) -> tuple[str, int | None]:
    """A name without its axis, and the axis."""
    match = AXIS.fullmatch(name)
    return (match["site"], int(match["axis"])) if match else (name, None)


def _site(naming: Naming, other: Naming | None, unit_axes: Mapping[str, int]) -> Site:
    name, aval = naming.name, naming.aval
    if other is None or other.turns != naming.turns:
        raise ConfigError(
            f"site {name!r} stands in a scan over the rows of the batch; name a value outside of it, or use "
            "jax.vmap over rows"
        )
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        raise ConfigError(f"site {name!r} holds {aval.dtype}; name floating-point values")
    row_axis = _row_axis(name, aval.shape, other.aval.shape, "shard_map" in naming.path)
    shape = (aval.shape[row_axis], *aval.shape[:row_axis], *aval.shape[row_axis + 1 :])
    plain, axis = _plain(name)
    if axis is None:
        axis = next((value for pattern, value in unit_axes.items() if _matches(pattern, plain)), -1)
    unit_axis = axis if axis < 0 else axis - len(shape)
    if not 1 - len(shape) <= unit_axis <= -1:
        raise ConfigError(
            f"axis {axis} of site {plain!r} can't hold its units: the value has shape {shape}, rows first; "
            f"choose 1 to {len(shape) - 1}, or -1 to {1 - len(shape)}"
        )
    if site_type(plain) == PATTERN and unit_axis == -1:
        raise ConfigError(
            f"the last axis of pattern {plain!r} holds its keys, not its heads; say where heads are, as in "
            f'"{plain}@1" for (rows, heads, queries, keys)'
        )
    return Site(
        tag=name,
        names=numbered(plain, naming.turns),
        turns=naming.turns,
        order_keys=_order_keys(naming),
        shape=shape,
        dtype=str(aval.dtype),
        row_axis=row_axis,
        unit_axis=unit_axis,
        path=naming.path,
    )


def _order_keys(naming: Naming) -> tuple[tuple[int, ...], ...]:
    """Sort keys of the turns, in the order of `names`: the equation's numbers, and the turn of each scan."""
    order_keys = [naming.numbers]
    for length, backward in naming.scans:
        order_keys = [
            _at_turn(key, length - 1 - turn if backward else turn)
            for key in order_keys
            for turn in range(length)
        ]
    return tuple(order_keys)


def _at_turn(key: tuple[int | None, ...], turn: int) -> tuple[int | None, ...]:
    first = key.index(None)
    return (*key[:first], turn, *key[first + 1 :])


def _row_axis(name: str, few: Sequence[int], more: Sequence[int], split: bool) -> int:
    changed = [axis for axis, (size, larger) in enumerate(zip(few, more, strict=False)) if size != larger]
    if len(changed) == 1:
        size, larger = few[changed[0]], more[changed[0]]
        shards = ROWS[0] // size if split else 1
        if (size * shards, larger * shards) == ROWS:
            if len(few) == 1:
                raise ConfigError(f"site {name!r} is one number per row; name a value with an axis of units")
            return changed[0]
    if not changed:
        raise ConfigError(
            f"site {name!r} has no axis of rows, its shape {tuple(few)} is the same for every batch; name a "
            "value that has one (broadcast it first)"
        )
    raise ConfigError(
        f"site {name!r} has shape {tuple(few)} at {ROWS[0]} rows and {tuple(more)} at "
        f"{ROWS[1]}: rows are folded with other axes; name the value where rows have an axis of their own"
    )


def in_order(sites: Iterable[Site]) -> list[tuple[str, Site]]:
    """Every name of every site, with the site, in order of execution: a scan turn by turn."""
    keyed = [
        (key, name, site) for site in sites for key, name in zip(site.order_keys, site.names, strict=True)
    ]
    return [(name, site) for _, name, site in sorted(keyed, key=lambda entry: entry[0])]


def numbered(name: str, turns: Sequence[int]) -> tuple[str, ...]:
    """One name for each turn of the scans that contain a value.

    The number of a turn replaces a `*`, scan by scan from the left; without a `*`, `turnN.` is put in front.

    Raises:
      ConfigError: more `*` than scans.

    Example:
      >>> numbered("block*.mlp", (2,)), numbered("mlp", (2,)), numbered("mlp", ())
      (('block0.mlp', 'block1.mlp'), ('turn0.mlp', 'turn1.mlp'), ('mlp',))
    """
    if name.count(TURN) > len(turns):
        raise ConfigError(
            f"site {name!r} has {name.count(TURN)} {TURN!r} and stands in {len(turns)} scans; each {TURN!r} "
            "is the number of a scan's turn; leave it out elsewhere"
        )
    names = ["turn*." * (len(turns) - name.count(TURN)) + name]
    for length in turns:
        names = [template.replace(TURN, str(turn), 1) for template in names for turn in range(length)]
    return tuple(names)
