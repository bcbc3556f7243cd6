"""Samples of a denoiser without intervention, and their conditions."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from mechdiff.core import devices
from mechdiff.core.batches import batches
from mechdiff.core.config import UNetConfig
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Images, PRNGKey, PyTree
from mechdiff.diffusion.samplers import Sampler, guided, sample
from mechdiff.diffusion.schedules import SAMPLE_STEPS, ddim_timesteps
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import footprint, memory

SAMPLE_BLOCK = 16  # images drawn together
BRIEF_STEPS = 10  # DDIM, for images of a first ranking only


def draw_samples(
    denoiser: Examinable,
    key: jax.Array,
    count: int,
    steps: int | None = None,
    *,
    condition: PyTree = None,
    guidance: float = 1.0,
    quickly: bool = False,
) -> Images:
    """`count` images sampled by DDIM in blocks of one shape; image i depends on (key, i) only.

    Args:
      steps: of DDIM; see `sampled_timesteps`.
      condition: leaves `(count, ...)`; None: for a network with classes, all classes in turn.
      guidance: scale of `samplers.guided`; other than 1 only for a network with a null class.
      quickly: by a program that compiles faster, see `devices.jitted`.
    Returns:
      `(count, height, width, channels)`.

    Raises:
      ConfigError: a network that is conditioned on images, without them; a condition of another number of
        images; guidance without a null class; more steps than T.
    """
    memory.require_room("samples", (count, *denoiser.image_shape))
    condition = sample_condition(denoiser, count) if condition is None else condition
    # Before tracing, where labels have values.
    condition = conditions.of_rows(denoiser.network, condition, count)
    null = null_condition(denoiser, condition) if guidance != 1 else condition
    block = memory.images_at_once(min(SAMPLE_BLOCK, count), footprint.row_bytes(denoiser.network))
    timesteps = tuple(sampled_timesteps(denoiser, steps).tolist())
    mesh = devices.over(block)
    placed = devices.everywhere(mesh, denoiser)
    run = devices.jitted(_drawn, ("mesh", "timesteps", "guidance"), quickly)
    drawn = []
    for batch in batches(count, block):
        pair = conditions.at((condition, null), batch.indices)
        images = run(placed, key, batch.indices, pair, mesh=mesh, timesteps=timesteps, guidance=guidance)
        drawn.append(np.asarray(images))
    return np.concatenate(drawn)[:count]


def sampled_timesteps(denoiser: Examinable, steps: int | None = None) -> Int[np.ndarray, " steps"]:
    """Timesteps that DDIM visits, increasing.

    Args:
      steps: how many; None: `SAMPLE_STEPS`, or all of a network that has fewer.

    Raises:
      ConfigError: fewer than one, or more than T.
    """
    last = denoiser.schedule.steps
    return ddim_timesteps(last, min(SAMPLE_STEPS, last) if steps is None else steps)


def check_acts(window: Int[AnyArray, " ends"], visited: Int[np.ndarray, " steps"]) -> None:
    """Refuses an intervention whose window holds none of the timesteps that are visited.

    Example:
      >>> check_acts(np.array([0, 300]), np.arange(0, 1000, 20))

    Raises:
      ConfigError: it would not act; with the timesteps that are visited.
    """
    low, high = (int(end) for end in window)
    if not ((low <= visited) & (visited < high)).any():
        raise ConfigError(
            f"window [{low}, {high}) holds none of the {len(visited)} timesteps that are visited, "
            f"{visited.min()} to {visited.max()}: the intervention would not act; widen it, or take more "
            "steps"
        )


def _drawn(
    denoiser: Examinable,
    key: PRNGKey,
    indices: Int[Array, " batch"],
    condition_and_null: tuple[PyTree, PyTree],
    *,
    mesh: Mesh,
    timesteps: tuple[int, ...],
    guidance: float,
) -> Images:
    """Samples of these indices, without intervention: one compiled program for all blocks.

    Args:
      condition_and_null: the condition of each image, and its null condition.
    """

    def local(denoiser, key, indices, condition_and_null):
        condition, null = condition_and_null
        predict = functools.partial(denoiser.predict, denoiser.identity)
        predict = guided(predict, condition, null, guidance)
        sampler = Sampler(denoiser.schedule, timesteps=timesteps, clip=sample_clip(denoiser))
        return sample(predict, sampler, key, (len(indices), *denoiser.image_shape), indices=indices)

    run = devices.map_over_images(local, mesh, (ALL, ALL, IMAGES, IMAGES))
    return run(denoiser, key, indices, condition_and_null)


def sample_clip(denoiser: Examinable) -> float:
    """The clip of predicted images in sampling: that of a UNet's configuration, else 1."""
    return getattr(denoiser.network, "sample_clip", 1.0)


def sample_condition(denoiser: Examinable, count: int) -> PyTree:
    """The default condition of samples: every class in turn; None for an unconditional network.

    Raises:
      ConfigError: the network is conditioned on something other than classes of a table.
    """
    unet, classes = denoiser.network, conditions.taken(denoiser.network).classes
    if not isinstance(unet, UNetConfig):
        if unet.conditioned and classes:
            return np.arange(count, dtype=np.int32) % classes
        if unet.conditioned:
            raise ConfigError(
                f"{denoiser.name} takes a condition, for which there is no default: give one per image (a "
                "function named by --model returns (denoiser, images, condition))"
            )
        return None
    if unet.condition_channels or unet.class_embedding != "table":
        raise ConfigError(
            f"{denoiser.name} is conditioned on {' and '.join(conditions.takes(unet))}, for which there is "
            "no default: give images, and a condition for each of them"
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
    if isinstance(condition, dict):
        return condition | {"label": np.full(np.shape(condition["label"]), null, np.int32)}
    return np.full(np.shape(condition), null, np.int32)
