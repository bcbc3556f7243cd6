"""Tensors of a safetensors file <-> our parameters, by a table of names.

A table maps `stage/module/leaf` of ours to the tensor's name there. It is complete: what it does not name in
a file is unused, what the file lacks is missing, and either is an error.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import CheckpointError, shorten
from mechdiff.core.types import PyTree
from mechdiff.models.unet import init_shapes
from mechdiff.storage import files
from mechdiff.storage.mismatch import named_leaves

State = Mapping[str, np.ndarray]
# Widest first; float64 is rounded to what is computed in.
DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHOWN = 3  # names in one error
TABLES = "/embedding"  # how the names of parameters end that are tables, not matrices
MAX_NAME_LENGTH = 60  # characters, in one error
COUNTERS = (
    "decay", "initted", "num_updates", "num_batches_tracked", "optimization_step", "step", "steps",
    "n_averaged", "global_step", "epoch",
)  # fmt: skip

CONVERT = (  # for people who have a pickle that they trust; the README has it for lists and views too
    'python -c "import torch, safetensors.torch as s; s.save_file('
    "torch.load('{}', 'cpu', weights_only=True), '{}')\""
)
POINTER = b"version https://git-lfs"  # how the stand-in of a file in Git LFS begins


def index_of(path: Path) -> Path:
    """The index that lists the shards of a file: `NAME.safetensors.index.json`, with a variant between."""
    stem, *variant = path.name.removesuffix(".safetensors").split(".")
    return path.with_name(".".join([stem, "safetensors.index", *variant, "json"]))


def load(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Every tensor of a safetensors file by name, as float32, and the widest type among them.

    Where the file is absent but its index (`index_of`) is there, the shards that this lists are read.
    Counters that trainers leave among the tensors (steps of an average) are passed over.

    Raises:
      CheckpointError: absent, truncated, a pickle, or with numbers of a type that is not supported; an index
        that is not one, that leads out of the folder, or that contradicts its shards.
      DataError: an index that is not JSON.
    """
    index = index_of(path)
    if path.is_file() or not index.is_file():
        return _load(path)
    state, dtypes = {}, set()
    for name, tensors in _shards(index).items():
        shard, dtype = _load(path.with_name(name))
        if set(shard) != tensors:
            strange = sorted(set(shard) ^ tensors)
            raise CheckpointError(f"{index} and {name} differ: {_listed('only in one of them', strange)}")
        state |= shard
        dtypes.add(dtype)
    return state, next(dtype for dtype in DTYPES.values() if dtype in dtypes)


def _shards(index: Path) -> dict[str, set[str]]:
    """Names of the files that an index lists, and the tensors in each."""
    content = files.read_json(index)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index} has no weight_map of tensors to files; download it again")
    shards: dict[str, set[str]] = {}
    for tensor, name in shard_of.items():
        if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]*\.safetensors", name)):
            raise CheckpointError(
                f"{index} places {tensor[:MAX_NAME_LENGTH]} in {shorten(name)}; "
                "only .safetensors files beside it are read"
            )
        shards.setdefault(name, set()).add(tensor)
    return shards


def _load(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """`load` of one file."""
    if not path.is_file():
        raise _absent(path)
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: s.get_dtype() for name, s in slices.items() if not _is_counter(name, s)}
            strange = [name for name, dtype in dtypes.items() if dtype not in DTYPES]
            if strange:
                raise CheckpointError(
                    f"{path}: {shorten(strange[0])} has numbers of type {dtypes[strange[0]]}; supported: "
                    f"{', '.join(DTYPES)}; save it as one of them"
                )
            state = {name: file.get_tensor(name).astype(np.float32) for name in dtypes}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    _check_finite(state, path)
    return state, next((ours for theirs, ours in DTYPES.items() if theirs in dtypes.values()), "float32")


def _check_finite(state: State, path: Path) -> None:
    wrong = [name for name, value in state.items() if not np.isfinite(value).all()]
    if wrong:
        raise CheckpointError(f"{path} holds NaN or Inf: {_listed('tensors', wrong)}; it was saved broken")


def _is_counter(name: str, tensor) -> bool:
    return name.rsplit(".", 1)[-1] in COUNTERS and math.prod(tensor.get_shape()) <= 1


def _absent(path: Path) -> CheckpointError:
    if path.is_symlink():
        return CheckpointError(f"{path} is a link to {path.readlink()}, which is absent; fetch that file")
    others = sorted(other.name for other in path.parent.glob("*"))
    pickles = [name for name in others if Path(name).suffix in PICKLES]
    if pickles:
        return _pickle(path.with_name(pickles[0]), path.name)
    found_names = shorten(", ".join(others[:SHOWN]) or "nothing")[1:-1]
    return CheckpointError(f"{path} is absent, which holds the parameters; there lies {found_names}")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    with path.open("rb") as file:
        head = file.read(len(POINTER))
    if head == POINTER:
        return CheckpointError(f"{path} is a pointer of Git LFS, not the file; fetch it (git lfs pull)")
    if head[:2] == b"PK" or head[:1] == b"\x80":  # how pickles of torch begin, new and old
        return _pickle(path, f"new-{path.name}")
    reason = next(iter(str(error).splitlines()), "")[:150]
    return CheckpointError(f"{path} is damaged ({reason}); download it again")


def _pickle(path: Path, target: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is a pickle, which can run code and is never opened here; if you trust it: "
        f"{CONVERT.format(path.name, target)} (lists, EMA: README)"
    )


@functools.cache
def parameter_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of our parameters by `stage/module/leaf`."""
    params = init_shapes(config)[0]
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(params).items()}


def to_params(state: State, table: Mapping[str, str], config: UNetConfig, where: Path | str) -> PyTree:
    """Our parameters from a state dict.

    Raises:
      CheckpointError: missing, unused or misshapen tensors; the line names them.
    """
    shapes = parameter_shapes(config)
    missing = [name for name in table.values() if name not in state]
    unused = sorted(set(state) - set(table.values()))
    if missing or unused:
        problems = [_listed("missing", missing), _listed("unused", unused)]
        raise CheckpointError(f"{where} does not fit its config: {'; '.join(filter(None, problems))}")
    params: dict = {}
    wrong = []
    for ours, theirs in table.items():
        value = inward(state[theirs], len(shapes[ours]), transpose=not ours.endswith(TABLES))
        if value.shape != shapes[ours]:
            whole = np.broadcast_to(False, shapes[ours])  # without memory, whatever its size
            expected = _turned(whole, not ours.endswith(TABLES)).shape
            wrong.append(f"{theirs} {state[theirs].shape}, not {expected}")
        stage, module, leaf = ours.split("/")
        params.setdefault(stage, {}).setdefault(module, {})[leaf] = value
    if wrong:
        raise CheckpointError(f"{where} does not fit its config: {_listed('wrong shapes', wrong)}")
    return params


def from_params(params: PyTree, table: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `to_params`; contiguous, in the type they have."""
    leaves = named_leaves(params)
    return {
        theirs: outward(np.asarray(leaves[ours]), not ours.endswith(TABLES)) for ours, theirs in table.items()
    }


def inward(value: np.ndarray, rank: int, transpose: bool = True) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out), (out, in) -> (in, out), float32. A convolution of
    size 1 becomes a matrix if `rank` is 2. Without `transpose` a table of rows is unchanged."""
    if not transpose:
        return np.ascontiguousarray(value, np.float32)
    if rank == 2 and value.ndim > 2 and value.shape[2:] == (1,) * (value.ndim - 2):
        value = value.reshape(value.shape[:2])
    axes = (2, 3, 1, 0) if value.ndim == 4 else None
    return np.ascontiguousarray(value.transpose(axes), np.float32)


def outward(value: np.ndarray, transpose: bool = True) -> np.ndarray:
    """The inverse of `inward`."""
    return np.ascontiguousarray(_turned(value, transpose))


def _turned(value: np.ndarray, transpose: bool) -> np.ndarray:
    return value.transpose((3, 2, 0, 1) if value.ndim == 4 else None) if transpose else value


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    short = [
        name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}..." for name in names[:SHOWN]
    ]
    return f"{len(names)} {what}: {', '.join(short)}{more}"
