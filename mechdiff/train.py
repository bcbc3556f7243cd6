"""Training: a pure step, and a thin loop that owns the disk.

Everything random follows from (seed, step), so a run killed at any moment and started again ends
with the parameters of an uninterrupted one.
"""

import dataclasses
import functools
import operator
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from mechdiff import checkpoint, evaluation, files, images, keys, runlog
from mechdiff.config import ExperimentConfig, TrainConfig, from_dict, to_dict
from mechdiff.data import Dataset, batch_at, load, to_bytes, to_float
from mechdiff.diffusion import training_loss
from mechdiff.errors import ConfigError, NumericsError
from mechdiff.interventions import Intervention
from mechdiff.sampler import sample
from mechdiff.schedules import NoiseSchedule, ddim_timesteps, make_schedule, timesteps_by_log_snr
from mechdiff.types import PRNGKey, PyTree
from mechdiff.unet import apply_unet, count_parameters, denoise, init_unet

EVAL_LEVELS = 8  # timesteps, evenly spread in log-SNR, that losses are reported at
SAMPLES = 64  # pictures on a sample sheet
SAMPLE_STEPS = 50  # DDIM


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds (or, in the hands of JAX and Orbax, the shapes of it)."""

    step: Any  # int32, steps done
    params: PyTree
    ema: PyTree
    opt_state: PyTree


class Metrics(NamedTuple):
    """Of one step."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; linear warm-up, then cosine decay."""
    warmup = min(config.warmup, max(config.steps - 1, 0))
    rate = optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.steps,
        end_value=config.learning_rate * config.final_fraction,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.adamw(rate, weight_decay=config.weight_decay)
    )


def init_state(config: ExperimentConfig) -> tuple[TrainState, Intervention]:
    """The state before the first step, and the identity intervention of its network."""
    params, identity = init_unet(keys.stream(jax.random.key(config.seed), "params"), config.unet)
    opt_state = make_optimizer(config.train).init(params)
    ema = jax.tree.map(jnp.array, params)  # copies: donated buffers must not be shared
    return TrainState(jnp.zeros((), jnp.int32), params, ema, opt_state), identity


def spread_timesteps(key: PRNGKey, count: int, steps: int) -> Int[Array, " count"]:
    """`count` uniform timesteps, spread evenly over [0, steps) so that their loss varies less
    (Kingma et al. 2021, appendix I.1)."""
    u = (jax.random.uniform(key) + jnp.arange(count) / count) % 1
    return jnp.minimum((u * steps).astype(jnp.int32), steps - 1)


def train_step(
    config: ExperimentConfig,
    schedule: NoiseSchedule,
    identity: Intervention,
    state: TrainState,
    batch: UInt8[Array, "batch height width channels"],
) -> tuple[TrainState, Metrics]:
    """One update from one batch of pictures. Pure; `config` is static."""
    train = config.train
    key = jax.random.fold_in(keys.stream(jax.random.key(config.seed), "train"), state.step)

    def loss_fn(params: PyTree, x0: Array, t: Array, noise: Array, key: PRNGKey) -> Array:
        dropout = key if config.unet.dropout else None
        network = functools.partial(
            apply_unet, config.unet, params, identity, dtype=jnp.dtype(train.dtype), dropout_key=dropout
        )
        prediction, diffusion = config.unet.prediction, config.diffusion
        return training_loss(
            network, schedule, x0, t, noise, prediction, diffusion.weighting, diffusion.min_snr_gamma
        ).mean()

    def micro(total: PyTree, inputs: tuple) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(state.params, *inputs)), None

    parts = train.accumulate
    x0 = to_float(batch)
    t = jax.random.permutation(
        keys.stream(key, "order"), spread_timesteps(keys.stream(key, "t"), len(x0), schedule.steps)
    )
    inputs = (x0, t, jax.random.normal(keys.stream(key, "noise"), x0.shape))
    inputs = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), inputs)
    inputs = (*inputs, jax.random.split(keys.stream(key, "dropout"), parts))
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    loss, grads = jax.tree.map(lambda a: a / parts, _accumulated(micro, zero, inputs, parts))

    updates, opt_state = make_optimizer(train).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    return TrainState(state.step + 1, params, ema, opt_state), Metrics(loss, optax.tree.norm(grads))


def _accumulated(micro, total: PyTree, inputs: PyTree, parts: int) -> PyTree:
    """`micro` folded over micro-batches: a scan, but unrolled on CPUs, where XLA's convolution gradients
    are many times slower inside a loop (even one of a single turn)."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(micro, total, inputs)[0]
    for part in range(parts):
        total, _ = micro(total, jax.tree.map(operator.itemgetter(part), inputs))
    return total


class Placement(NamedTuple):
    """Where arrays lie: state on every device, batches split over them."""

    state: NamedSharding
    batch: NamedSharding


def data_parallel(batch: int) -> Placement:
    """Placement over all devices of this run; the batch must divide among them."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"training in {jax.process_count()} processes is not supported; "
            "start one process that sees all devices of its machine"
        )
    count = jax.device_count()
    if batch % count:
        raise ConfigError(
            f"train.batch={batch} does not divide among {count} devices; use a multiple of {count}"
        )
    mesh = jax.make_mesh((count,), ("batch",), axis_types=(AxisType.Auto,))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch")))


class Trainer:
    """The loop of one run in `workdir`: checkpoints, log, evaluation, sample sheets, final export."""

    def __init__(self, config: ExperimentConfig, workdir: Path):
        self.config, self.workdir = config, files.ensure_writable(workdir)
        self.placement = data_parallel(config.train.batch)
        self.schedule = make_schedule(config.diffusion)
        size = config.unet.image_size
        self.train_set = load(config.data, size, "train", 0, self.workdir / "cache")
        self.test_set = load(config.data, size, "test", 0, self.workdir / "cache")
        self.levels = timesteps_by_log_snr(self.schedule, EVAL_LEVELS)
        self._step = jax.jit(functools.partial(train_step, config), donate_argnums=2)
        self._losses = jax.jit(self._ema_losses)
        self._sample = jax.jit(self._ema_sample)

    def run(self) -> Path:
        """Trains to the end, from the newest checkpoint if there is one; the exported model's folder."""
        with files.hold(self.workdir), checkpoint.TrainCheckpoints(self.workdir / "checkpoints") as saved:
            state, identity, start = self._start(saved)
            with runlog.RunLog(self.workdir / "log.jsonl", resume_step=start) as log:
                self._started(start)
                state = self._loop(state, identity, start, saved, log)
                return self._finish(state, identity, log)

    def _start(self, saved: checkpoint.TrainCheckpoints) -> tuple[TrainState, Intervention, int]:
        init = jax.jit(functools.partial(init_state, self.config), out_shardings=self.placement.state)
        if saved.latest_step() is None:
            return *init(), 0
        shapes = jax.eval_shape(init)[0]
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.placement.state), shapes
        )
        state, _ = saved.restore(
            shapes, config=to_dict(self.config), ignore=("name", "sweep", "study", "train.steps")
        )
        return state, init()[1], int(state.step)

    def _started(self, step: int) -> None:
        facts = {
            "parameters": count_parameters(self.config.unet),
            "data": {
                "train": self.train_set.digest,
                "test": self.test_set.digest,
                "n_train": len(self.train_set),
            },
            "resumed_from": step,
        }
        files.write_json(self.workdir / "manifest.json", files.manifest(to_dict(self.config), **facts))

    def _loop(self, state, identity, start: int, saved, log) -> TrainState:
        train = self.config.train
        pending: list[Metrics] = []
        clock, images_seen = time.monotonic(), 0
        with runlog.progress(
            train.steps, start, f"training {self.config.name} on {self.train_set.name}"
        ) as bar:
            for step in range(start, train.steps):
                batch = batch_at(self.train_set, self.config.seed, step, train.batch, self.config.data.flip)
                batch = jax.device_put(batch, self.placement.batch)
                state, metrics = self._step(self.schedule, identity, state, batch)
                pending.append(metrics)
                done, images_seen = step + 1, images_seen + train.batch
                bar.update()
                if done % train.log_every == 0 or self._due(done, train.save_every):
                    values = self._finite(pending, done, saved)
                    pending = []
                    rate = images_seen / (time.monotonic() - clock)
                    bar.set_postfix_str(f"loss {values['loss']:.4f}")
                    log.append({"step": done, "kind": "train", **values, "images_per_second": round(rate, 2)})
                score = None
                if self._due(done, train.eval_every):
                    found = self.evaluate(state.ema, identity)
                    score = found["test_loss"]
                    log.append({"step": done, "kind": "eval", **found})
                if train.sample_every and done % train.sample_every == 0:
                    images.save_sheet(
                        self.workdir / "samples" / f"step_{done:07d}.png", self.samples(state.ema, identity)
                    )
                if self._due(done, train.save_every):
                    saved.save(done, state, {"config": to_dict(self.config)}, score)
        return state

    def _due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.config.train.steps

    def _finite(self, pending: list[Metrics], done: int, saved) -> dict[str, float]:
        """Means of the steps since the last look; NaN or Inf in any of them ends the run."""
        values = Metrics(*(np.array(column) for column in zip(*jax.device_get(pending))))
        bad = ~(np.isfinite(values.loss) & np.isfinite(values.grad_norm))
        if bad.any():
            step = done - len(bad) + int(bad.argmax())
            saved.wait()
            last = saved.latest_step()
            kept = (
                f"{saved.folder / str(last)} is the last good checkpoint"
                if last
                else "no checkpoint was kept yet"
            )
            raise NumericsError(
                f"loss {values.loss[bad.argmax()]} at step {step} is not finite; {kept}; "
                "lower train.learning_rate or train.clip_norm and start again"
            )
        return {"loss": float(values.loss.mean()), "grad_norm": float(values.grad_norm.mean())}

    def _ema_losses(self, ema: PyTree, identity: Intervention, pictures: Array) -> Array:
        predict = functools.partial(denoise, self.config.unet, self.schedule, ema, identity)
        key = keys.stream(jax.random.key(self.config.seed), "evaluation")
        return evaluation.losses(predict, self.schedule, key, to_float(pictures), jnp.asarray(self.levels))

    def evaluate(self, ema: PyTree, identity: Intervention) -> dict:
        """Held-out and training loss of the EMA parameters, per level and pooled."""
        count = min(self.config.train.eval_images, len(self.train_set), len(self.test_set))
        found = [
            np.asarray(self._losses(ema, identity, np.array(data.images[:count])))
            for data in (self.train_set, self.test_set)
        ]
        return {"levels": [int(t) for t in self.levels], **evaluation.summary(*found)}

    def _ema_sample(self, ema: PyTree, identity: Intervention) -> Array:
        unet = self.config.unet
        predict = functools.partial(denoise, unet, self.schedule, ema, identity)
        steps = ddim_timesteps(self.schedule.steps, min(SAMPLE_STEPS, self.schedule.steps))
        key = keys.stream(jax.random.key(self.config.seed), "samples")
        shape = (SAMPLES, unet.image_size, unet.image_size, unet.in_channels)
        return to_bytes(sample(predict, self.schedule, key, shape, timesteps=steps))

    def samples(self, ema: PyTree, identity: Intervention) -> UInt8[np.ndarray, "n height width channels"]:
        """A sheet's worth of pictures from the EMA parameters; always from the same noise."""
        return np.asarray(self._sample(ema, identity))

    def _finish(self, state: TrainState, identity: Intervention, log: runlog.RunLog) -> Path:
        pictures = self.samples(state.ema, identity)
        held_out = np.array(self.test_set.images[:512])
        manifest = files.read_json(self.workdir / "manifest.json")
        record = {
            **self.evaluate(state.ema, identity),
            "memorisation": evaluation.memorisation(pictures, self.train_set.images, held_out),
            "steps": int(state.step),
            "images": int(state.step) * self.config.train.batch,
            "log": runlog.read_log(log.path),
            "manifest": {name: manifest[name] for name in manifest if name not in ("config", "command")},
        }
        # Where the pictures lay on this machine is no part of the model.
        data = dataclasses.replace(self.config.data, path="", cache="")
        return checkpoint.export_model(
            self.workdir / "model",
            state.ema,
            to_dict(dataclasses.replace(self.config, data=data)),
            record,
            dtype="float16",
            extras={"samples.png": images.png(images.sheet(pictures))},
        )


def train(config: ExperimentConfig, workdir: Path) -> Path:
    """Trains `config` in `workdir`, resuming what is there; returns the exported model's folder."""
    return Trainer(config, workdir).run()


def load_trained(folder: Path) -> tuple[ExperimentConfig, PyTree, Intervention, dict[str, Any]]:
    """An exported model: its config, EMA parameters, identity intervention and training record."""
    params, config, record = checkpoint.load_model(folder)
    config = from_dict(config)
    shapes, identity = jax.jit(init_unet, static_argnums=1).eval_shape(jax.random.key(0), config.unet)
    checkpoint.check_shapes(params, shapes, folder)
    identity = jax.jit(lambda key: init_unet(key, config.unet)[1])(jax.random.key(0))
    return config, params, identity, record


__all__ = ["Dataset", "TrainState", "Trainer", "load_trained", "train", "train_step"]
