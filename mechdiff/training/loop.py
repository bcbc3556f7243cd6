"""The training loop, which does all reading and writing; its step is in `step`.

All randomness is a function of (seed, step), so a run killed at any moment and restarted ends with the
parameters of an uninterrupted one. Of several processes each reads its rows of a batch, all take the same
steps, and the first writes everything but checkpoints.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8

from mechdiff.core import devices, processes
from mechdiff.core.config import ExperimentConfig, check_effective, to_dict
from mechdiff.core.errors import NumericsError
from mechdiff.core.types import PyTree
from mechdiff.data import Dataset, class_names
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.unet import count_parameters
from mechdiff.storage import checkpoint, exchange, exported, files, image_grid, locks, manifest, run_log
from mechdiff.storage.mismatch import config_fields
from mechdiff.storage.tensorboard import TensorBoardLog, writer_class
from mechdiff.training import evaluation, resuming
from mechdiff.training.batches import load_run_data, placed_batch
from mechdiff.training.prefetch import prefetched
from mechdiff.training.programs import eval_timesteps, programs
from mechdiff.training.step import Metrics, TrainState


class Trainer:
    """The loop of one run in `workdir`: checkpoints, log, evaluation, sample sheets, final export."""

    def __init__(self, config: ExperimentConfig, workdir: Path, *, tensorboard: bool = False):
        """Reads the data and places the state's parts.

        Raises:
          ConfigError: devices that don't divide the batch, or, with `train.fsdp`, hardly any parameters; of
            several processes, if one has other settings, data or another folder.
        """
        if tensorboard:
            writer_class()  # may be missing, which is said before any image is read
        self.tensorboard = tensorboard
        self.config, self.workdir = config, files.ensure_writable(workdir)
        self.programs, self.seed = programs(config), np.uint32(config.seed)
        processes.announce()
        processes.check_alike(self._settings())
        exchange.check_shared(self.workdir)
        self.data = load_run_data(config, self.workdir / "cache")
        processes.check_alike({"images of data.name": self.data.train.digest})

    def run(self) -> Path:
        """Trains to the end, from the newest checkpoint if there is one; the exported model's folder."""
        with contextlib.ExitStack() as stack:
            processes.in_first(lambda: stack.enter_context(locks.lock(self.workdir)))
            stack.enter_context(exchange.written_by_first(self.workdir))
            saved = stack.enter_context(checkpoint.TrainCheckpoints(self.workdir / "checkpoints"))
            state, start = self._start(saved)
            log = processes.in_first(lambda: self._open_log(start))
            log = stack.enter_context(log or run_log.SilentLog())
            processes.in_first(lambda: self._started(start))
            with devices.enough_memory(self._way_out_of_memory()):
                state = self._loop(state, start, saved, log)
            saved.wait()
            return self._export(self.workdir / "model", state, log)

    def _settings(self) -> dict[str, object]:
        """What must be the same in all processes of a run before its data are read."""
        fields = config_fields(to_dict(self.config))
        versions = {f"version of {name}": manifest.package_version(name) for name in ("mechdiff", "jax")}
        return fields | {"workdir": exchange.address_of(self.workdir)} | versions

    def _way_out_of_memory(self) -> str:
        train = self.config.train
        spread = "" if train.fsdp else ", set train.fsdp=True on several devices"
        return (
            f"raise train.accumulate (now {train.accumulate}), lower train.batch (now {train.batch})"
            f"{spread}, set train.dtype=bfloat16, or use a larger card"
        )

    def _open_log(self, start: int) -> run_log.RunLog:
        path = self.workdir / "log.jsonl"
        if self.tensorboard:
            return TensorBoardLog(path, self.workdir / "tensorboard", start)
        return run_log.RunLog(path, resume_step=start)

    def _start(self, saved: checkpoint.TrainCheckpoints) -> tuple[TrainState, int]:
        newest = processes.from_first(saved.latest_step() or 0)
        if not newest:
            check_effective(self.config)  # runs that have begun go on as they are
            return self.programs.init(self.seed), 0
        exchange.catch_up(self.workdir)
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.programs.shapes,
            self.programs.of_state,
        )
        free = resuming.free_settings(self.config, saved.metadata(newest))
        state, metadata = saved.restore(placed, newest, config=to_dict(self.config), ignore=free)
        resuming.check(self.config.train, self.workdir, newest, metadata, self._images())
        return state, newest

    def _images(self) -> dict[str, dict]:
        """What the images of both splits are, for checkpoints."""
        splits = {"train": self.data.train, "test": self.data.test}
        return {name: {"digest": split.digest, "count": len(split)} for name, split in splits.items()}

    def _started(self, step: int) -> None:
        train = self.config.train
        if train.warmup >= train.steps:
            logging.warning(
                "train.warmup=%d is not below train.steps=%d: the learning rate rises until the last step",
                train.warmup, train.steps,
            )  # fmt: skip
        facts = {
            "parameters": count_parameters(self.config.unet),
            "data": {
                "train": self.data.train.digest,
                "test": self.data.test.digest,
                "n_train": len(self.data.train),
            },
            "resumed_from": step,
        }
        manifest.write(self.workdir, manifest.run_manifest(to_dict(self.config), **facts))

    def _loop(self, state, start: int, saved, log) -> TrainState:
        train, update = self.config.train, functools.partial(self.programs.update, self.seed)
        pending: list[Metrics] = []
        speed = _Speed(train.batch, start)
        make_batch = functools.partial(placed_batch, self.data, self.programs.placement.batch)
        title = f"training {self.config.name} on {self.data.train.name}"
        with run_log.progress(train.steps, start, title, quiet=not processes.is_first()) as bar:
            for step, batch in prefetched(make_batch, start, train.steps):
                state, metrics = update(state, *batch)
                pending.append(metrics)
                done = step + 1
                bar.update()
                if done % train.log_every == 0 or self._due(done, train.save_every):
                    values = self._finite(pending, done, saved)
                    pending = []
                    values["images_per_second"] = round(speed.until(done), 2)
                    bar.set_postfix_str(f"loss {values['loss']:.4f}")
                    log.append({"step": done, "kind": "train", **values})
                    speed.restart(done)
                score = None
                if self._due(done, train.eval_every):
                    losses = self.evaluate(state.ema)
                    score = losses["test_loss"]
                    log.append({"step": done, "kind": "eval", **losses})
                    speed.restart(done)
                if train.sample_every and done % train.sample_every == 0:
                    self._save_sheet(done, self.samples(state.ema))
                    speed.restart(done)
                if done in train.keep:  # before the checkpoint, so that no resumed run can miss it
                    saved.wait()
                    self._export(self.workdir / "snapshots" / str(done), state, log)
                    speed.restart(done)
                if self._due(done, train.save_every):
                    saved.save(done, state, {"config": to_dict(self.config), "images": self._images()}, score)
        return state

    def _save_sheet(self, done: int, images: np.ndarray) -> None:
        path = self.workdir / "samples" / f"step_{done:07d}.png"
        processes.in_first(lambda: image_grid.save_sheet(path, images))

    def _due(self, done: int, interval: int) -> bool:
        return done % interval == 0 or done == self.config.train.steps

    def _finite(self, pending: list[Metrics], done: int, saved) -> dict[str, float]:
        """Means over the steps since the last log line; NaN or Inf in any of them ends the run."""
        values = Metrics(*(np.array(column) for column in zip(*jax.device_get(pending), strict=True)))
        bad = ~(np.isfinite(values.loss) & np.isfinite(values.grad_norm))
        if bad.any():
            step = done - len(bad) + int(bad.argmax())
            saved.wait()
            last = processes.from_first(saved.latest_step() or 0)
            kept = "no checkpoint was kept yet"
            if last:
                kept = f"{exchange.address_of(saved.folder / str(last))} is the newest checkpoint"
            raise NumericsError(
                f"loss {values.loss[bad.argmax()]} at step {step} is not finite; {kept}; "
                "lower train.learning_rate or train.clip_norm and start in another --workdir"
            )
        return {"loss": float(values.loss.mean()), "grad_norm": float(values.grad_norm.mean())}

    def evaluate(self, ema: PyTree) -> dict:
        """Held-out and training loss of the EMA parameters, per timestep and pooled."""
        count = min(self.config.train.eval_images, len(self.data.train), len(self.data.test))

        def losses(dataset: Dataset, labels: Int[np.ndarray, " images"] | None) -> np.ndarray:
            labels = None if labels is None else labels[:count]
            return np.asarray(self.programs.losses(self.seed, ema, np.array(dataset.images[:count]), labels))

        train = losses(self.data.train, self.data.train_labels)
        test = losses(self.data.test, self.data.test_labels)
        return {
            "levels": [int(t) for t in eval_timesteps(make_schedule(self.config.diffusion))],
            **evaluation.summary(train, test),
        }

    def samples(self, ema: PyTree) -> UInt8[np.ndarray, "n height width channels"]:
        """A sheet of images from the EMA parameters, classes in turn; always from the same noise."""
        return np.asarray(self.programs.sample(self.seed, ema))

    def _export(self, folder: Path, state: TrainState, log: run_log.RunLog) -> Path:
        """Writes the model after `state.step` steps, with its record, to `folder`.

        No checkpoint may be in the making: Orbax counts its barriers between processes, and two writers
        at once would count differently in each, and wait for each other for ever.
        """
        evaluated, images = self.evaluate(state.ema), self.samples(state.ema)
        ema, steps = checkpoint.on_host(state.ema), int(state.step)
        held_out = np.array(self.data.test.images[:512])
        made_with = processes.in_first(lambda: files.read_record(self.workdir / "manifest.json", ())) or {}
        record = {
            **evaluated,
            "memorization": evaluation.memorization(
                images, self.data.train.images, held_out, self.config.data.flip
            ),
            "steps": steps,
            "images": steps * self.config.train.batch,
            "log": processes.in_first(lambda: run_log.read_log(log.path)),
            "manifest": {name: made_with[name] for name in made_with if name not in ("config", "command")},
        }
        if self.config.unet.classes:
            names = class_names(self.data.train, self.config.data.classes, self.config.unet.classes)
            record["class_names"] = list(names)
        if self.data.train.digests is not None:  # so that it is never examined on them
            record["training_images"] = sorted(str(digest)[:16] for digest in self.data.train.digests)
        # Where the images were on this machine is not a part of the model.
        data = dataclasses.replace(self.config.data, path="", cache="")
        return exported.export_model(
            folder,
            ema,
            to_dict(dataclasses.replace(self.config, data=data)),
            record,
            dtype="float16",
            extras={image_grid.SHEET: image_grid.png(image_grid.sheet(images))},
        )


class _Speed:
    """Images per second of training alone: since the last line of the log, or the last evaluation, sheet or
    export, whichever came later."""

    def __init__(self, batch: int, step: int):
        self._batch = batch
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._clock = step, time.monotonic()

    def until(self, step: int) -> float:
        return (step - self._step) * self._batch / (time.monotonic() - self._clock)


def train(config: ExperimentConfig, workdir: Path, *, tensorboard: bool = False) -> Path:
    """Trains `config` in `workdir`, resuming a run that is there; returns the exported model's folder.

    Args:
      tensorboard: writes the log's numbers to WORKDIR/tensorboard too; needs tensorboardX.
    """
    with processes.all_there():
        return Trainer(config, workdir, tensorboard=tensorboard).run()
