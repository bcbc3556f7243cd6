"""SHA-256 digests of JSON, files and arrays: what results are named by.

Functions of arrays import JAX: the command `mechdiff` completes words and lists what there is without it.
"""

import hashlib
import json
import math
import weakref
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGE = Path(__file__).parents[1]


def to_jsonable(data: Any) -> Any:
    """`data` as JSON would give it back: tuples as lists, numpy and JAX scalars as numbers, no NaN (null)."""
    if isinstance(data, dict):
        return {str(key): to_jsonable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [to_jsonable(item) for item in data]
    if hasattr(data, "__array__"):
        return to_jsonable(np.asarray(data).tolist())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data


def digest_json(data: Any) -> str:
    """SHA-256 (hex) of `data` as canonical JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(to_jsonable(data), sort_keys=True).encode()).hexdigest()


def digest_file(path: Path | str) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_arrays(tree: Any) -> str:
    """SHA-256 (hex) over the leaves of `tree`: path, dtype, shape and bytes of each, ordered by path.

    Device arrays are copied to the host. Equal digests mean bitwise equal trees.
    """
    import jax

    def plain(leaf):
        dtype = getattr(leaf, "dtype", None)
        is_key = dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf  # the state of NNX's dropout holds keys

    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(jax.tree.map(plain, tree)))
    total = hashlib.sha256()
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for path, leaf in sorted(named.items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{path}|{array.dtype.name}|{np.shape(leaf)}|".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


class _Digested(NamedTuple):
    """A tree that was digested: its structure, its arrays as long as they live, and the digest."""

    structure: Any
    arrays: list[weakref.ref]
    digest: str


_last: list[_Digested] = []  # one at most: of one network after another, in several sweeps each


def digest_device_arrays(tree: Any) -> str:
    """`digest_arrays`, cached for the last tree if all its leaves are JAX arrays, which can't be written to.
    Hashing a gigabyte of parameters before every sweep would take 0.6 s on one core.

    Example:
      >>> import jax.numpy as jnp
      >>> tree = {"kernel": jnp.ones(3)}
      >>> digest_device_arrays(tree) == digest_device_arrays(tree) == digest_arrays(tree)
      True
    """
    import jax

    leaves, structure = jax.tree_util.tree_flatten(tree)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):
        return digest_arrays(tree)
    for tree_before in _last:
        arrays = [array() for array in tree_before.arrays]
        if tree_before.structure == structure and all(a is b for a, b in zip(arrays, leaves, strict=True)):
            return tree_before.digest
    digest = digest_arrays(tree)
    _last[:] = [_Digested(structure, [weakref.ref(leaf) for leaf in leaves], digest)]
    return digest


@cache
def code_digest() -> str:
    """SHA-256 (hex) of the package's sources, for manifests; `report/`, which computes no numbers, is left
    out. Results are named by `NUMERICS_VERSION` instead: a new docstring must not orphan them."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("report/"):
            total.update(f"{name}|{digest_file(path)}\n".encode())
    return total.hexdigest()
