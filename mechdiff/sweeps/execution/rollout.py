"""Walks down the noise levels under interventions, from any step to any other, shared out over devices.

Images are shared out over the devices of this process: each walks its own under all interventions.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree, StepFn
from mechdiff.diffusion.samplers import guided, initial_noise, keys_of_steps, one_step, sample
from mechdiff.diffusion.schedules import ddim_timesteps
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import memory

Window = tuple[int, int]
Levels = Sequence[int] | Int[np.ndarray, " steps"]


def even_windows(levels: Levels, count: int) -> tuple[Window, ...]:
    """`count` half-open windows of t that cut the visited levels into equal parts, highest t first.

    Together they cover every visited level, each once. Raises ConfigError unless 1 <= count <= steps.
    """
    levels = np.sort(np.asarray(levels))
    if not 1 <= count <= len(levels):
        raise ConfigError(f"{count} windows of {len(levels)} sampling steps; choose 1 to {len(levels)}")
    cuts = [len(levels) * i // count for i in range(count)]
    edges = [*(int(levels[cut]) for cut in cuts), int(levels[-1]) + 1]
    return tuple(itertools.pairwise(edges))[::-1]


def network_calls(levels: Levels, windows: Sequence[Window], count: int) -> tuple[int, int]:
    """Network calls per sample for `count` interventions in each window: with the clean trajectory shared
    (its own calls included), and without sharing."""
    steps = len(levels)
    after = sum(steps - first_step_inside(levels, window) for window in windows)
    return steps + count * after, count * steps * len(windows)


def first_step_inside(levels: Levels, window: Window) -> int:
    """The first step of a rollout down `levels` that is inside a window."""
    down = np.sort(np.asarray(levels))[::-1]
    inside = np.flatnonzero((down >= window[0]) & (down < window[1]))
    if len(inside) == 0:
        raise ConfigError(
            f"window [{window[0]}, {window[1]}) holds none of the {len(down)} timesteps visited"
        )
    return int(inside[0])


@functools.partial(jax.jit, static_argnames=("step_fn", "clip", "mesh"))
def _walk(
    denoiser: Examinable,
    step_fn: StepFn,
    clip: float,
    mesh: Mesh,
    stacked: Intervention,
    replacements: PyTree,
    levels: Int[Array, " steps"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
    x: Images,
    indices: Int[Array, " batch"],
    key: PRNGKey,
    condition: PyTree,
) -> Float[Array, "interventions batch height width channels"]:
    """Images after steps `start` to `stop` of a rollout down `levels`, under each intervention.

    Where the rollout begins and ends are arguments, so all windows share one program.
    """

    def local(denoiser, stacked, replacements, levels, start, stop, key, x, indices, condition):
        count, batch = len(next(iter(stacked.gate.values()))), len(x)
        per_row = lambda leaf: jnp.repeat(leaf, batch, axis=0)
        stacked = dataclasses.replace(
            stacked,
            gate=jax.tree.map(per_row, stacked.gate),
            temperature=jax.tree.map(per_row, stacked.temperature),
            add=jax.tree.map(per_row, stacked.add),
        )
        indices = jnp.tile(indices, count)
        condition = jax.tree.map(lambda leaf: jnp.tile(leaf, (count, *[1] * (leaf.ndim - 1))), condition)
        previous = jnp.append(levels[1:], -1)
        step_keys = keys_of_steps(key, levels)

        def step(i, x_t):
            here = dataclasses.replace(
                stacked, replacement=jax.tree.map(lambda replacement: replacement[i], replacements)
            )
            predict = functools.partial(denoiser.predict, here, condition=condition)
            at = levels[i], previous[i]
            return one_step(predict, denoiser.schedule, step_keys[i], x_t, *at, indices, step_fn, clip)[0]

        final = jax.lax.fori_loop(start, stop, step, jnp.tile(x, (count, *[1] * (x.ndim - 1))))
        return final.reshape(count, *x.shape)

    specs = (*[ALL] * 7, IMAGES, IMAGES, IMAGES)
    outs = PartitionSpec(None, "images")
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)
    return run(denoiser, stacked, replacements, levels, start, stop, key, x, indices, condition)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A denoiser's sampler, with what all its rollouts share."""

    denoiser: Examinable
    levels: np.ndarray  # descending
    key: PRNGKey
    step_fn: StepFn
    clip: float  # see `sampler.sample`
    block: int  # images that are walked together
    condition: PyTree = None  # of each sample, leaves (samples, ...)

    @functools.cached_property
    def mesh(self) -> Mesh:
        return devices.over(self.block)

    @functools.cached_property
    def _placed(self) -> Examinable:
        return devices.everywhere(self.mesh, self.denoiser)

    def walk(self, stacked: Intervention, replacements, start: int, stop: int, x, indices) -> Array:
        program = self._placed, self.step_fn, self.clip, self.mesh
        x = devices.shared(self.mesh, x)  # always laid out alike: another layout would be another program
        condition = jax.tree.map(lambda leaf: np.asarray(leaf)[indices], self.condition)
        span = self.levels, start, stop
        return _walk(*program, stacked, replacements, *span, x, indices, self.key, condition)

    def clean(self, starts: Sequence[int], indices: np.ndarray) -> tuple[dict[int, Array], Array]:
        """States at the steps `starts`, and the final images."""
        identity = _stacked_identity(self.denoiser.identity)
        none = zero_replacements(self.denoiser.identity, len(self.levels))
        x, at, states = initial_noise(self.key, indices, self.denoiser.image_shape), 0, {}
        for stop in sorted({*starts, len(self.levels)}):
            x = self.walk(identity, none, at, stop, x, indices)[0]
            at = stop
            states[stop] = x
        return states, x


def _stacked_identity(identity: Intervention) -> Intervention:

    def with_row_axis(leaf):
        return np.asarray(leaf)[None]

    return dataclasses.replace(
        identity,
        gate=jax.tree.map(with_row_axis, identity.gate),
        temperature=jax.tree.map(with_row_axis, identity.temperature),
        replacement=None,
    )


def zero_replacements(identity: Intervention, steps: int) -> PyTree:
    """Replacements of `zero` ablation for every step."""
    return {
        site: np.zeros((steps, *np.shape(replacement)), np.float32)
        for site, replacement in identity.replacement.items()
    }


SAMPLE_STEPS = 50  # DDIM
SAMPLE_BLOCK = 16  # images drawn together


def draw_samples(
    denoiser: Examinable,
    key: jax.Array,
    count: int,
    steps: int = SAMPLE_STEPS,
    *,
    condition: PyTree = None,
    guidance: float = 1.0,
) -> Images:
    """`count` images of a denoiser by DDIM, drawn in blocks of one shape; image i depends on (key, i).

    Args:
      condition: leaves `(count, ...)`; None: of a network with classes, all of them in turn.
      guidance: scale of `samplers.guided`; other than 1 only for a network with a null class.

    Raises:
      ConfigError: a network that is conditioned on images, without them; guidance without a null class.
    """
    condition = sample_condition(denoiser, count) if condition is None else condition
    conditions.check(denoiser.network, condition)  # labels are out of range here, or never seen to be
    null = null_condition(denoiser, condition) if guidance != 1 else condition
    block = memory.rows_at_once(min(SAMPLE_BLOCK, count), memory.row_bytes(denoiser.network))
    levels = ddim_timesteps(denoiser.schedule.steps, min(steps, denoiser.schedule.steps))
    mesh = devices.over(block)
    placed = devices.everywhere(mesh, denoiser)
    drawn = []
    for start in range(0, count, block):
        indices = start + np.arange(block)
        taken = functools.partial(np.take, indices=np.minimum(indices, count - 1), axis=0)
        told = jax.tree.map(taken, (condition, null))
        drawn.append(np.asarray(_drawn(placed, mesh, tuple(levels.tolist()), guidance, key, indices, told)))
    return np.concatenate(drawn)[:count]


@functools.partial(jax.jit, static_argnames=("mesh", "levels", "guidance"))
def _drawn(
    denoiser: Examinable,
    mesh: Mesh,
    levels: tuple[int, ...],
    guidance: float,
    key: PRNGKey,
    indices: Int[Array, " batch"],
    told: tuple[PyTree, PyTree],
) -> Images:
    """Samples of the given indices, under the denoiser's own identity: one program for all of them.

    Args:
      told: the condition of each image, and its null condition.
    """

    def local(denoiser, key, indices, told):
        predict = functools.partial(denoiser.predict, denoiser.identity)
        predict = guided(predict, *told, guidance)
        shape = (len(indices), *denoiser.image_shape)
        clip, schedule, steps = sample_clip(denoiser), denoiser.schedule, np.asarray(levels)
        return sample(predict, schedule, key, shape, timesteps=steps, clip=clip, indices=indices)

    specs = (ALL, ALL, IMAGES, IMAGES)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=IMAGES, check_vma=False)
    return run(denoiser, key, indices, told)


def sample_clip(denoiser: Examinable) -> float:
    """How far predicted images are clipped while sampling: as a UNet's configuration says, or to [-1, 1]."""
    return getattr(denoiser.network, "sample_clip", 1.0)


def sample_condition(denoiser: Examinable, count: int) -> PyTree:
    """What samples are drawn under if nothing is said: every class in turn; None for a network without any.

    Raises:
      ConfigError: the network is conditioned on more than classes of a table.
    """
    unet, classes = denoiser.network, conditions.taken(denoiser.network).classes
    if not isinstance(unet, UNetConfig):
        if unet.conditioned and classes:
            return np.arange(count, dtype=np.int32) % classes
        if unet.conditioned:
            raise ConfigError(
                f"{denoiser.name} takes a condition, which is not made up here: give one for each image (a "
                "function named by --model returns (denoiser, images, condition))"
            )
        return None
    if unet.condition_channels or unet.class_embedding != "table":
        raise ConfigError(
            f"{denoiser.name} is conditioned on {' and '.join(conditions.takes(unet))}, which is not made up "
            "here: give images, and a condition for each of them"
        )
    return np.arange(count, dtype=np.int32) % unet.classes if unet.classes else None


def null_condition(denoiser: Examinable, condition: PyTree) -> PyTree:
    """The condition with every label the null class.

    Raises:
      ConfigError: the network has none.
    """
    null = getattr(denoiser.network, "null_label", None)
    if null is None:
        raise ConfigError(
            f"guidance of {denoiser.name}: it has no null class (unet.null_class; --null_class at import)"
        )
    empty = lambda label: np.full(np.shape(label), null, np.int32)
    if isinstance(condition, dict):
        return condition | {"label": empty(condition["label"])}
    return empty(condition)
