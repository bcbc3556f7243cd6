"""Finished models on disk: parameters, config, record and the SHA-256 of them all.

What is loaded is what was saved, or nothing is loaded.
"""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core import processes
from mechdiff.core.errors import CheckpointError, DataError
from mechdiff.core.old_names import RECORD_NAMES
from mechdiff.core.types import PyTree
from mechdiff.storage import checkpoint, checksums, exchange, files
from mechdiff.storage.guards import damage, saving
from mechdiff.storage.mismatch import check_shapes, named_leaves

LAYOUT = "mechdiff-model-1"  # of an exported folder; a change of its files needs a new name


def export_model(
    folder: Path | str,
    params: PyTree,
    config: dict,
    record: dict,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    extras: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a finished model: `params/` (Orbax), `config.json`, `record.json` and SHA256SUMS of them all.

    The folder appears whole or not at all; an earlier export of the same name is replaced. Where a run has
    several processes, all of them must call this (Orbax waits for them); where each has a copy of the folder,
    each writes its own. Only one export to `folder` at a time (a training holds the lock of its run). What a
    killed export left beside it is put back where `folder` is missing, else removed.

    Args:
      params: nested dicts of floating arrays.
      config: what the model was trained with.
      record: facts about the training (data, score, ...), JSON-ready.
      extras: other files to keep beside them, name -> content.
      dtype: of the stored numbers; float16 halves the size at a relative error of 2**-11.

    Raises:
      CheckpointError: numbers that are not finite in `dtype`; a folder that is not an export stands there.
    """
    folder = Path(folder).absolute()
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
        stored = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.dtype(dtype)), params)
    for path, leaf in named_leaves(stored).items():
        if not np.isfinite(leaf).all():
            raise CheckpointError(f"{path} of the params is not finite in {dtype}; nothing exported")
    if folder.exists() and not (folder / checksums.NAME).is_file():
        raise CheckpointError(f"{folder} exists and is not an exported model; choose another name")
    token = processes.from_first(uuid.uuid4().int % 2**31)  # of one name in all processes
    aside = folder.with_name(f".{folder.name}.{token:08x}.tmp")

    def begin() -> None:
        _clear(folder)
        files.ensure_writable(aside)

    def finish() -> None:
        # Orbax only asks whether this file exists; what it writes there is the folder's absolute path.
        files.write_atomic(aside / "params" / "commit_success.txt", "committed\n")
        files.write_json(aside / "config.json", config)
        files.write_json(aside / "record.json", {"layout": LAYOUT, "dtype": dtype, "record": record})
        for name, content in (extras or {}).items():
            files.write_atomic(aside / name, content)
        checksums.write(aside)
        files.swap(aside, folder)

    try:
        with saving(folder):
            exchange.in_writers(folder, begin)
            checkpoint.save_arrays(aside / "params", stored)
            exchange.in_writers(folder, finish)
    finally:
        if processes.is_first() or exchange.has_copies(folder):
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def load_model(folder: Path | str, abstract_params: PyTree | None = None) -> tuple[PyTree, dict, dict]:
    """An exported model: float32 `params` on the first device, the config's dict, and the training record.

    Every file is compared with SHA256SUMS before anything of it is used; nothing is written.

    Args:
      abstract_params: shapes that the params must have (say, of `jax.eval_shape` of the initializer).

    Raises:
      CheckpointError: absent, damaged, of an unknown layout, or of other shapes.
    """
    folder = Path(folder).absolute()
    checksums.verify(folder)
    try:
        config, about = files.read_json(folder / "config.json"), files.read_json(folder / "record.json")
        layout = about["layout"]
    except (DataError, KeyError, TypeError):
        layout = None
    if layout != LAYOUT:
        raise CheckpointError(f"{folder} has layout {layout!r}, not {LAYOUT!r}; export the model again")
    with damage(folder / "params", "restore it from its source"):
        stored = checkpoint.stored_shapes(folder / "params")
    if abstract_params is not None:
        check_shapes(stored, abstract_params, folder)
    with damage(folder / "params", "restore it from its source"):
        params = checkpoint.load_arrays(folder / "params", stored)
    record = {RECORD_NAMES.get(name, name): value for name, value in about["record"].items()}
    return params, config, record


def _clear(folder: Path) -> None:
    """Removes what killed exports left beside `folder`; an earlier model that one of them had moved away is
    put back if there is no other."""
    left = files.left_beside(folder)
    earlier = [path for path in left if path.suffix == ".old"]
    if earlier and not folder.exists():
        max(earlier, key=lambda path: path.stat().st_mtime).rename(folder)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
