"""Comparison of saved with expected configs and shapes; both are printed where they differ."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from mechdiff.core.errors import CheckpointError
from mechdiff.core.types import PyTree
from mechdiff.storage import digests


def compare_configs(saved: dict, wanted: dict, where: Path | str, ignore: Iterable[str] = ()) -> None:
    """Raises a CheckpointError naming the fields in which two config dicts differ, with both values."""
    saved, wanted = config_fields(digests.to_jsonable(saved)), config_fields(digests.to_jsonable(wanted))
    ignored = tuple(ignore)
    different = [
        f"{name} is {_shown(saved, name)} there and {_shown(wanted, name)} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
        and not any(name == field or name.startswith(f"{field}.") for field in ignored)
    ]
    if different:
        way_out = "use the same settings or another --workdir"
        raise CheckpointError(f"{where} was made with another config: {'; '.join(different)}; {way_out}")


def check_shapes(stored: PyTree, wanted: PyTree, where: Path | str) -> None:
    """Raises a CheckpointError naming the first leaf whose shape differs, with both shapes."""
    stored, wanted = shapes(stored), shapes(wanted)
    for path in sorted(stored.keys() | wanted.keys()):
        shape, expected = stored.get(path, "absent"), wanted.get(path, "absent")
        if shape != expected:
            line = f"{where} does not fit: {path} is {shape} there and {expected} in the network asked for"
            raise CheckpointError(f"{line}; use the config that it was made with")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path; attributes, keys and indices are written alike, as Orbax keeps them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of the leaves by path."""
    return {path: tuple(leaf.shape) for path, leaf in named_leaves(tree).items()}


def config_fields(config: dict, prefix: str = "") -> dict[str, Any]:
    """Values of a config's dict by dotted name, such as `train.steps`."""
    flat = {}
    for name, value in config.items():
        flat |= (
            config_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _shown(fields: dict[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "absent"
