"""Training states on disk. The one file that knows Orbax (its v1 interface).

Orbax writes a step aside and renames it, so a process killed while saving leaves the earlier steps as they
were. Besides, a state carries a digest of its content: what is loaded is bitwise what was saved, or nothing
is loaded.
"""

import logging
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mechdiff.core import processes
from mechdiff.core.config import from_dict, to_dict
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.core.types import PyTree
from mechdiff.storage import digests, exchange, files
from mechdiff.storage.guards import damage, saving, why_not_saved
from mechdiff.storage.mismatch import check_shapes, compare_configs, named_leaves, shapes


def _heard(record: logging.LogRecord) -> bool:
    """Whether a message that Orbax logs is shown. It logs its progress, and each error once per thread; it
    raises errors as well, and that is enough. In one of several processes, though, it first waits for the
    others, which wait for what could not be written, for up to twenty minutes: such a process ends here."""
    if "/orbax/checkpoint/" not in record.pathname:
        return True
    if record.levelno < logging.ERROR or not jax.distributed.is_initialized():
        return False
    in_thread = record.pathname.endswith("/futures/future.py")
    if in_thread and record.exc_info and (error := record.exc_info[1]):
        print(f"error: {why_not_saved(error, 'checkpoint')}", file=sys.stderr)
        processes.abandon(2)
    return True


for _logger in (logging.getLogger("absl"), logging.getLogger()):
    _logger.addFilter(_heard)


class TrainCheckpoints:
    """The checkpoints of one training run: the newest steps and the best one (lowest score).

    Reading never writes to the folder. Only one run at a time may save (see `locks.lock`). If it has several
    processes, all of them must save and restore together: each its own part, in a folder that all see; or, if
    each has its own copy (see `exchange`), each saves everything into it, and restores its part.
    """

    def __init__(self, folder: Path | str, keep: int = 2):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._writer: ocp.training.Checkpointer | None = None
        self._copies = exchange.has_copies(self.folder)

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
        if self._copies:  # of what the device shows: it writes there again soon
            state = jax.tree.map(np.copy, on_host(state))
        metadata = digests.to_jsonable({**metadata, "score": score, "arrays": _digest_arrays(state)})
        metadata["digest"] = _digest(metadata, state)
        with saving(self.folder):
            self._open().save_async(
                step, state, force=True, overwrite=True, metrics=metrics, custom_metadata=metadata
            )

    def wait(self) -> None:
        """Returns when everything saved so far is on the disk."""
        if self._writer is not None:
            with saving(self.folder):
                self._writer.wait()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with saving(self.folder):
                writer.close()

    def __enter__(self) -> "TrainCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Closes; not after an error in one of several processes: Orbax would wait for the others there,
        which may be waiting for this one."""
        if kind is None or jax.process_count() == 1:
            self.close()

    def steps(self) -> list[int]:
        """Steps on the disk, ascending; one still being written is not among them."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def latest_step(self) -> int | None:
        """The newest step on the disk, or None."""
        return max(self.steps(), default=None)

    def metadata(self, step: int) -> dict:
        """The metadata of a step on the disk, without its arrays.

        Raises:
          CheckpointError: damaged.
        """
        return self._facts(step)[0]

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
        metadata, saved_shapes = self._facts(step)
        if config is not None:
            compare_configs(_as_now(metadata.get("config", {})), config, path, ignore)
        check_shapes(saved_shapes, abstract_state, path)
        with damage(path, self._way_out(step)):
            with _context(self._copies):
                state = ocp.load(path, jax.tree.map(_placed, abstract_state))
            if _digest_arrays(state) != metadata.pop("arrays"):
                raise ValueError("its arrays are not those that were saved")
        return state, metadata

    def _facts(self, step: int) -> tuple[dict, PyTree]:
        """Metadata and the tree of shapes of one step, without its arrays."""
        path = self.folder / str(step)
        with damage(path, self._way_out(step)):
            saved = ocp.metadata(path)
            metadata = dict(saved.custom_metadata or {})
            if metadata.pop("digest", None) != _digest(metadata, saved.metadata):
                raise ValueError("its metadata is not what was saved")
            return metadata, saved.metadata

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
                context=_context(self._copies),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
                cleanup_tmp_directories=True,
            )
        return self._writer


def _as_now(saved: dict) -> dict:
    """A saved config with today's names and defaults; unchanged if it is not a complete config."""
    try:
        return to_dict(from_dict(saved))
    except ConfigError:
        return saved


def _context(copies: bool = False) -> ocp.Context:
    """Compact files: without copies of shapes and shardings, which the abstract state provides at loading.

    Devices of one process don't share out an array that they all have: each shape would need a program of its
    own to be cut.

    Args:
      copies: each of several processes writes to its own folder.
    """
    context = ocp.Context()
    context.array.saving.use_replica_parallel = jax.process_count() > 1
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.array_metadata_store = None
    if copies:
        context.multiprocessing.primary_host = None
        # Made in the background, a folder counts as made when any process has made its own.
        context.asynchronous.create_directories_asynchronously = False
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


def save_arrays(folder: Path, tree: PyTree) -> None:
    """Writes arrays to a new folder; all processes must call it."""
    if not exchange.has_copies(folder):
        with _context():
            ocp.save(folder, tree)
        return
    # `ocp.save` wants one path in all processes. Two on one machine have their copies side by side.
    steps = folder.with_name(f"{folder.name}.steps")
    with ocp.training.Checkpointer(steps, context=_context(copies=True)) as writer:
        writer.save(0, tree)
    (steps / "0").rename(folder)
    steps.rmdir()


def stored_shapes(folder: Path) -> PyTree:
    """Shapes and types of the arrays in a folder of `save_arrays`."""
    with _alone():
        return ocp.metadata(folder).metadata


def load_arrays(folder: Path, stored: PyTree) -> PyTree:
    """The arrays in a folder, as float32 on the first device.

    Args:
      stored: of `stored_shapes`.
    """
    sharding = _first_device()
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding), stored
    )
    with _alone():
        return ocp.load(folder, target)


def on_host(tree: PyTree) -> PyTree:
    """`tree` as whole NumPy arrays, also where they are spread over the devices of several processes (then
    all of these must call it)."""
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
    """Digest of the leaves by plain path: the same for a record and for the dict that Orbax makes of it."""
    return digests.digest_arrays(on_host(named_leaves(state)))


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or _first_device()
    )
