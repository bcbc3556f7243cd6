"""One step of training: gradients, spread over devices, and the update they make. Pure functions."""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8, UInt32

from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, TrainConfig
from mechdiff.core.types import PRNGKey, PyTree
from mechdiff.data import to_float
from mechdiff.diffusion.process import training_loss
from mechdiff.diffusion.schedules import NoiseSchedule, make_schedule
from mechdiff.interventions.record import Intervention
from mechdiff.models.stage_modules import Mode
from mechdiff.models.unet import apply_unet, identity_intervention, init_unet
from mechdiff.training.placement import BATCH, shard_specs

Seed = UInt32[Array, ""]  # an argument of programs, so that all trainings of a study share them
GATHERED = "gathered"  # name of parameters gathered from their shards; not saved for the backward pass


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a training run, as saved in checkpoints; its leaves may be shapes."""

    step: Any  # int32, steps done
    params: PyTree
    ema: PyTree
    opt_state: PyTree


class Fixed(NamedTuple):
    """What training does not change; constants of its programs, so that XLA drops the gates of the identity,
    which is a tenth of the time on a CPU."""

    schedule: NoiseSchedule
    identity: Intervention


class LossSettings(NamedTuple):
    """What the loss depends on besides parameters, batch and dropout.

    Attributes:
      specs: how parameters are sharded over devices, of their structure.
    """

    config: ExperimentConfig
    identity: Intervention
    specs: PyTree
    schedule: NoiseSchedule


class NoisedBatch(NamedTuple):
    """Input of the loss: clean images, with the timestep, noise and class (if any) of each."""

    x0: Float[Array, "batch height width channels"]
    t: Int[Array, " batch"]
    noise: Float[Array, "batch height width channels"]
    labels: Int[Array, " batch"] | None


class Metrics(NamedTuple):
    """Measures of one training step."""

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


def fixed_parts(config: ExperimentConfig) -> Fixed:
    """The schedule and identity of a training."""
    identity = jax.tree.map(np.asarray, identity_intervention(config.unet))  # on no device: on all
    return Fixed(make_schedule(config.diffusion), identity)


def init_state(config: ExperimentConfig, seed: Seed) -> TrainState:
    """The state before the first step. `config` is static, and its own seed is not used."""
    params, _ = init_unet(keys.stream(jax.random.key(seed), "params"), config.unet)
    opt_state = make_optimizer(config.train).init(params)
    ema = jax.tree.map(jnp.array, params)  # copies: donated buffers must not be shared
    return TrainState(jnp.zeros((), jnp.int32), params, ema, opt_state)


def spread_timesteps(key: PRNGKey, count: int, steps: int) -> Int[Array, " count"]:
    """`count` uniform timesteps, spread evenly over [0, steps) so that their loss varies less
    (Kingma et al. 2021, appendix I.1)."""
    u = (jax.random.uniform(key) + jnp.arange(count) / count) % 1
    return jnp.minimum((u * steps).astype(jnp.int32), steps - 1)


def train_step(
    config: ExperimentConfig,
    mesh: Mesh,
    fixed: Fixed,
    seed: Seed,
    state: TrainState,
    batch: UInt8[Array, "batch height width channels"],
    labels: Int[Array, " batch"] | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from one batch of images. Pure; `config` and `mesh` are static.

    Each device of the mesh takes its share of the batch, in `accumulate` micro-batches.

    Args:
      labels: the class of each image, for a network with classes; a share `train.label_dropout` of them is
        replaced by the null class (classifier-free guidance, Ho & Salimans 2022).
    """
    train, (schedule, identity) = config.train, fixed
    key = jax.random.fold_in(keys.stream(jax.random.key(seed), "train"), state.step)
    x0 = to_float(batch)
    t = jax.random.permutation(
        keys.stream(key, "order"), spread_timesteps(keys.stream(key, "t"), len(x0), schedule.steps)
    )
    noise = jax.random.normal(keys.stream(key, "noise"), x0.shape)
    labels = _with_null_labels(config, keys.stream(key, "labels"), labels)
    everywhere, shares = PartitionSpec(), PartitionSpec(BATCH)
    specs = shard_specs(state.params, mesh.size if train.fsdp else 1)

    def gradients(schedule: NoiseSchedule, *inputs: Any) -> tuple[Array, PyTree]:
        return _gradients(LossSettings(config, identity, specs, schedule), *inputs)

    # Written out, as XLA would not split the loops inside convolutions and attention over devices by itself.
    loss, grads = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(everywhere, specs, shares, everywhere),
        out_specs=(everywhere, specs),
        check_vma=False,
    )(schedule, state.params, NoisedBatch(x0, t, noise, labels), keys.stream(key, "dropout"))

    updates, opt_state = make_optimizer(train).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    return TrainState(state.step + 1, params, ema, opt_state), Metrics(loss, optax.tree.norm(grads))


def _with_null_labels(config: ExperimentConfig, key: PRNGKey, labels: Array | None) -> Array | None:
    if labels is None or config.unet.null_label is None:
        return labels
    dropped = jax.random.bernoulli(key, config.train.label_dropout, labels.shape)
    return jnp.where(dropped, config.unet.null_label, labels)


def _gradients(
    settings: LossSettings, params: PyTree, batch: NoisedBatch, key: PRNGKey
) -> tuple[Array, PyTree]:
    """Mean loss and its gradient over all devices, from one device's share of the batch. Dropout differs
    between devices, and so depends on how many there are."""
    train = settings.config.train
    loss_fn = functools.partial(_mean_loss, settings)
    if train.fsdp:  # whole parameters are put together again in the backward pass, layer by layer
        policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
        loss_fn = jax.checkpoint(loss_fn, policy=policy)

    def micro(total: PyTree, inputs: tuple) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, *inputs)), None

    count = train.accumulate
    micro_batches = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), batch)
    dropout_keys = jax.random.split(jax.random.fold_in(key, jax.lax.axis_index(BATCH)), count)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total = _accumulated(micro, zero, (micro_batches, dropout_keys), count)
    loss, grads = jax.tree.map(lambda a: a / count, total)
    return jax.lax.pmean(loss, BATCH), jax.tree.map(_mean_over_devices, grads, settings.specs)


def _mean_loss(settings: LossSettings, params: PyTree, batch: NoisedBatch, key: PRNGKey) -> Array:
    """Mean loss of a micro-batch; `key` is of dropout."""
    config, unet, dtype = settings.config, settings.config.unet, jnp.dtype(settings.config.train.dtype)
    mode = Mode(dtype, key if unet.dropout else None)
    params = _gathered(params, settings.specs, dtype)
    losses = training_loss(
        functools.partial(apply_unet, unet, params, settings.identity, condition=batch.labels, mode=mode),
        settings.schedule,
        batch.x0,
        batch.t,
        batch.noise,
        prediction=unet.prediction,
        weighting=config.diffusion.weighting,
        gamma=config.diffusion.min_snr_gamma,
    )
    return losses.mean()


def _gathered(params: PyTree, specs: PyTree, dtype: Any) -> PyTree:
    """Parameters put together from the shards of all devices, cast as the layers would (only kernels are
    sharded). The gradient with respect to a shard is then summed over devices, in float32."""

    def leaf(shard: Array, spec: PartitionSpec) -> Array:
        if BATCH not in spec:
            return shard
        gathered = jax.lax.all_gather(shard, BATCH, axis=spec.index(BATCH), tiled=True)
        return checkpoint_name(gathered.astype(dtype), GATHERED)

    return jax.tree.map(leaf, params, specs)


def _mean_over_devices(grad: Array, spec: PartitionSpec) -> Array:
    """Gradients of shards are sums over devices already."""
    return grad / jax.lax.axis_size(BATCH) if BATCH in spec else jax.lax.pmean(grad, BATCH)


def _accumulated(micro, total: PyTree, inputs: PyTree, count: int) -> PyTree:
    """`micro` folded over micro-batches: a scan, but unrolled on CPUs, where XLA's convolution gradients
    are many times slower inside a loop (even one of a single iteration)."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(micro, total, inputs)[0]
    for i in range(count):
        total, _ = micro(total, jax.tree.map(operator.itemgetter(i), inputs))
    return total
