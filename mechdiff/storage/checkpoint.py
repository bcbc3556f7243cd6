"""Training states and finished models on disk. The one file that knows Orbax (its v1 interface).

Orbax writes a step aside and renames it, so a process killed while saving leaves the earlier steps as they
were. Besides, a state carries a digest of its content and an exported model the SHA-256 of its files: what
is loaded is bitwise what was saved, or nothing is loaded.
"""

import logging
import math
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mechdiff.core import processes
from mechdiff.core.config import from_dict, to_dict
from mechdiff.core.errors import CheckpointError, ConfigError, DataError, MechdiffError
from mechdiff.core.old_names import RECORD_NAMES
from mechdiff.core.types import PyTree
from mechdiff.storage import checksums, digests, files
from mechdiff.storage.mismatch import check_shapes, compare_configs, named_leaves, shapes

LAYOUT = "mechdiff-model-1"  # of an exported folder; a change of its files needs a new name

# Orbax logs its progress, and each error once per thread; it raises the errors as well, and that is enough.
for _logger in (logging.getLogger("absl"), logging.getLogger()):
    _logger.addFilter(lambda record: "/orbax/checkpoint/" not in record.pathname)


class TrainCheckpoints:
    """The checkpoints of one training run: the newest steps and the best one (lowest score).

    Reading never writes to the folder. One run at a time may save (see `locks.lock`); where it has several
    processes, all of them save and restore at once, each its own part.
    """

    def __init__(self, folder: Path | str, keep: int = 2):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._writer: ocp.training.Checkpointer | None = None

    def save(self, step: int, state: PyTree, metadata: dict, score: SupportsFloat | None = None) -> None:
        """Copies `state` to the host and returns; the writing goes on in the background.

        Args:
          step: of training; an existing checkpoint of that step is replaced.
          state: pytree of arrays (no typed PRNG keys).
          metadata: JSON-ready facts; `metadata["config"]` is what `restore` compares.
          score: lower is better; None or NaN is never the best.

        Raises:
          MechdiffError: the disk is full or not writable, now or in the previous save.
        """
        score = None if score is None or not math.isfinite(score) else float(score)
        metrics = None if score is None else {"score": score}
        known = digests.to_jsonable({**metadata, "score": score, "arrays": _digest_arrays(state)})
        known["digest"] = _digest(known, state)
        with _saving(self.folder):
            self._open().save_async(
                step, state, force=True, overwrite=True, metrics=metrics, custom_metadata=known
            )

    def wait(self) -> None:
        """Returns when everything saved so far is on the disk."""
        if self._writer is not None:
            with _saving(self.folder):
                self._writer.wait()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with _saving(self.folder):
                writer.close()

    def __enter__(self) -> "TrainCheckpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps on the disk, ascending; one still being written is not among them."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def latest_step(self) -> int | None:
        """The newest step on the disk, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the lowest score, or None when no step has one."""
        scores = {}
        for step in self.steps():
            score = self._facts(step)[0]["score"]
            if score is not None:
                scores[step] = score
        return min(scores, key=scores.get, default=None)

    def restore(
        self,
        abstract_state: PyTree,
        step: int | None = None,
        config: dict | None = None,
        ignore: Iterable[str] = (),
    ) -> tuple[PyTree, dict]:
        """The state saved at `step` (default: the newest) and its metadata.

        Args:
          abstract_state: `jax.ShapeDtypeStruct` (or arrays) of the state; a leaf without sharding goes to
            the first device. The devices may be others than those at saving.
          step: default: the newest.
          config: what the checkpoint's config must equal; None: not compared.
          ignore: fields (`"train.steps"`) or sections (`"sweep"`) that may differ.

        Raises:
          CheckpointError: absent, damaged, of other shapes, or of another config (both printed).
        """
        step = self.latest_step() if step is None else step
        path = self.folder / str(step)
        if step not in self.steps():
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; there are: {self.steps()}")
        metadata, found = self._facts(step)
        if config is not None:
            compare_configs(_as_now(metadata.get("config", {})), config, path, ignore)
        check_shapes(found, abstract_state, path)
        with _damage(path, self._way_out(step)):
            state = ocp.load(path, jax.tree.map(_placed, abstract_state))
            if _digest_arrays(state) != metadata.pop("arrays"):
                raise ValueError("its arrays are not those that were saved")
        return state, metadata

    def _facts(self, step: int) -> tuple[dict, PyTree]:
        """Metadata and the tree of shapes of one step, without its arrays."""
        path = self.folder / str(step)
        with _damage(path, self._way_out(step)):
            found = ocp.metadata(path)
            metadata = dict(found.custom_metadata or {})
            if metadata.pop("digest", None) != _digest(metadata, found.metadata):
                raise ValueError("its metadata is not what was saved")
            return metadata, found.metadata

    def _way_out(self, step: int) -> str:
        earlier = [other for other in self.steps() if other < step]
        return f"delete that folder to go on from {f'step {earlier[-1]}' if earlier else 'the start'}"

    def _open(self) -> ocp.training.Checkpointer:
        if self._writer is None:
            files.ensure_writable(self.folder)
            policies = ocp.training.preservation_policies
            best = policies.BestN(
                get_metric_fn=lambda metrics: metrics["score"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            self._writer = ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
                cleanup_tmp_directories=True,
            )
        return self._writer


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
    several processes, all of them must call this (Orbax waits for them).

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
    stored = jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf, dtype)), params)
    for path, leaf in named_leaves(stored).items():
        if not np.isfinite(leaf).all():
            raise CheckpointError(f"{path} of the params is not finite in {dtype}; nothing exported")
    if folder.exists() and not (folder / checksums.NAME).is_file():
        raise CheckpointError(f"{folder} exists and is not an exported model; choose another name")
    token = processes.from_first(uuid.uuid4().int % 2**31)  # of one name in all processes
    aside = folder.with_name(f".{folder.name}.{token:08x}.tmp")

    def finish() -> None:
        # Orbax only asks whether this file exists; what it writes there is the folder's absolute path.
        files.write_atomic(aside / "params" / "commit_success.txt", "committed\n")
        files.write_json(aside / "config.json", config)
        files.write_json(aside / "record.json", {"layout": LAYOUT, "dtype": dtype, "record": record})
        for name, content in (extras or {}).items():
            files.write_atomic(aside / name, content)
        checksums.write(aside)
        _swap(aside, folder)

    try:
        with _saving(folder):
            processes.in_first(lambda: files.ensure_writable(aside))
            with _context():
                ocp.save(aside / "params", stored)
            processes.in_first(finish)
    finally:
        if processes.is_first():
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
        raise CheckpointError(f"{folder} has layout {layout!r}, not {LAYOUT!r}; export the model anew")
    with _damage(folder / "params", "restore it from its source"), _alone():
        found = ocp.metadata(folder / "params").metadata
    if abstract_params is not None:
        check_shapes(found, abstract_params, folder)
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=_first_device()), found
    )
    with _damage(folder / "params", "restore it from its source"), _alone():
        params = ocp.load(folder / "params", target)
    record = {RECORD_NAMES.get(name, name): value for name, value in about["record"].items()}
    return params, config, record


def _as_now(saved: dict) -> dict:
    """A saved config with the names and the defaults of today; as it is where it is no whole config."""
    try:
        return to_dict(from_dict(saved))
    except ConfigError:
        return saved


def _context() -> ocp.Context:
    """Compact files: no copies of shapes and shardings, which the abstract state gives at loading."""
    context = ocp.Context()
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.array_metadata_store = None
    return context


def _alone() -> ocp.Context:
    """As `_context`, for reading by one process of several: Orbax would wait for the others."""
    context = _context()
    if jax.process_count() > 1:
        me = jax.process_index()
        context.multiprocessing.primary_host = me
        context.multiprocessing.active_processes = {me}
        context.multiprocessing.barrier_sync_key_prefix = f"alone{me}"
    return context


def on_host(tree: PyTree) -> PyTree:
    """Whole NumPy arrays of `tree`, also of those that are spread over the devices of several processes (who
    all must call it then)."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def leaf(array: Any) -> np.ndarray:
        spread = isinstance(array, jax.Array) and not array.is_fully_addressable
        if spread and not array.is_fully_replicated:
            return multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(leaf, tree)


def _digest(metadata: dict, tree: PyTree) -> str:
    return digests.digest_json([metadata, shapes(tree)])


def _digest_arrays(state: PyTree) -> str:
    """Of the leaves by plain path: the same for a record as for the dict in which Orbax keeps it."""
    return digests.digest_arrays(on_host(named_leaves(state)))


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or _first_device()
    )


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Errors while saving, from this thread or Orbax's, as one line."""
    try:
        yield
    except MechdiffError:
        raise
    except Exception as error:
        line = files.explain(error, path) if isinstance(error, OSError) else None
        if line is None and re.search("No space left|RESOURCE_EXHAUSTED", str(error)):
            line = f"{path}: the disk is full; free some space or choose another folder"
        raise CheckpointError(line or f"{path}: saving failed: {_first_line(error)}") from error


@contextmanager
def _damage(path: Path, way_out: str) -> Iterator[None]:
    """Whatever Orbax raises on files that it cannot read, as one line with the way out."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {way_out}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:150] or type(error).__name__


def _swap(aside: Path, folder: Path) -> None:
    """Puts `aside` in the place of `folder`; an earlier `folder` is removed afterwards."""
    old = folder.with_name(f"{aside.name}.old")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    files.sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
