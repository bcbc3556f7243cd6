"""What the untouched network does: activations, their moments, and statistics of its attention patterns."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, images_at, q_sample
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models.attention_stats import AttentionStatistics
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.layers import ATTENTION
from mechdiff.models.unet import forward, stages
from mechdiff.sweeps.execution import memory


@functools.partial(jax.jit, static_argnames=("unet", "collection"))
def _captured(unet, params, identity, schedule, x0, t, key, indices, condition=None, *, collection):
    """What one collection holds of each image; images are shared out over the devices."""

    def local(params, identity, schedule, t, key, x0, indices, condition):
        rows = jnp.full(x0.shape[0], t)
        x_t = q_sample(schedule, x0, rows, image_noise(key, indices, x0.shape[1:]))
        told = {"condition": condition, "capture": (collection,)}
        return forward(unet, params, identity, x_t, rows, **told)[1][collection]

    mesh, specs = devices.over(len(x0)), (*[ALL] * 5, IMAGES, IMAGES, IMAGES)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=IMAGES, check_vma=False)
    return run(params, identity, schedule, t, key, x0, indices, condition)


@functools.partial(jax.jit, static_argnames=("unet",))
def _moments(unet, params, identity, schedule, x0, t, key, indices, weights, condition):
    """Mean of every site over the real rows, and the sum of their squared distances from it."""
    images = (x0, t, key, indices, condition)
    found = _captured(unet, params, identity, schedule, *images, collection=CAPTURED)
    mean = jax.tree.map(lambda a: jnp.tensordot(weights / weights.sum(), a, 1), found)
    return mean, jax.tree.map(lambda a, m: jnp.tensordot(weights, (a - m) ** 2, 1), found, mean)


def _blocks(images: np.ndarray, indices: np.ndarray, condition: PyTree, block: int):
    """Blocks of images, indices and conditions of one shape; the last is padded with repeats of weight 0."""
    for start in range(0, len(images), block):
        chosen = np.arange(start, start + block)
        weights = (chosen < len(images)).astype(np.float32)
        chosen = np.minimum(chosen, len(images) - 1)
        told = jax.tree.map(lambda leaf, chosen=chosen: np.asarray(leaf)[chosen], condition)
        yield images[chosen], indices[chosen], told, weights


def activations(
    denoiser: Denoiser,
    x0: Images,
    t: int,
    key: PRNGKey,
    indices: Int[np.ndarray, " batch"],
    condition: PyTree = None,
    *,
    collection: str = CAPTURED,
) -> dict[str, Float[Array, "batch ..."]]:
    """Activation of every site on each image at one timestep: site -> `(batch, *site)`.

    Args:
      key, indices: image i has the noise of `image_noise(key, i)`.
      condition: of the images, leaves `(batch, ...)`.
      collection: `sites`; or `patterns` for the attention patterns `(batch, heads, tokens, tokens)`.
    """
    parts = denoiser.params, denoiser.identity, denoiser.schedule
    network = devices.everywhere(devices.over(len(x0)), parts)
    return _captured(denoiser.unet, *network, x0, t, key, indices, condition, collection=collection)


def activation_moments(
    denoiser: Denoiser,
    eval_set: EvalSet,
    *,
    block: int = 16,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean and standard deviation over images of every site, per timestep and position.

    Blocks are joined by the rule of Chan et al. 1983, in float64. Arguments and shapes are those of
    `activation_means`.
    """
    unet, params, identity, schedule = denoiser.unet, denoiser.params, denoiser.identity, denoiser.schedule
    network = unet, params, identity, schedule
    means, deviations = zip(*_moments_of_levels(*network, eval_set, block))
    return _stacked(means), _stacked(deviations)


def _stacked(trees: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Site -> `(levels, *site)`; empties the trees on the way, since large ones fill the memory."""
    return {site: np.stack([tree.pop(site) for tree in trees]) for site in list(trees[0])}


def _moments_of_levels(unet, params, identity, schedule, eval_set: EvalSet, block):
    """Mean and standard deviation of every site, float32, timestep by timestep."""
    images, key = eval_set.images, eval_set.key
    block = memory.rows_at_once(block, memory.row_bytes(unet) + 2 * memory.replacement_bytes(unet))
    indices = np.arange(len(images))
    params, identity, schedule = devices.everywhere(devices.over(block), (params, identity, schedule))
    for t in eval_set.timesteps:
        count, mean, spread = 0.0, {}, {}
        for x0, index, told, weights in _blocks(images, indices, eval_set.condition, block):
            found = _moments(unet, params, identity, schedule, x0, int(t), key, index, weights, told)
            part, around = ({site: np.asarray(a, np.float64) for site, a in tree.items()} for tree in found)
            more = float(weights.sum())
            share = more / (count + more)
            for site, value in part.items():
                shift = value - mean.get(site, 0.0)
                spread[site] = spread.get(site, 0.0) + around[site] + shift**2 * (count * share)
                mean[site] = mean.get(site, 0.0) + shift * share
            count += more
        deviation = {site: np.sqrt(value / count) for site, value in spread.items()}
        yield tuple({s: a.astype(np.float32) for s, a in tree.items()} for tree in (mean, deviation))


def activation_means(
    denoiser: Denoiser,
    eval_set: EvalSet,
    *,
    block: int = 16,
) -> dict[str, np.ndarray]:
    """Mean activation of every site over images, per timestep and position: fills of kind `mean`.

    Args:
      images: in [-1, 1]; take others than those that are scored.
      key: of the noise, one draw per image, shared by all timesteps.
    Returns:
      site -> `(levels, *site)`, where `site` is the shape of one row of that activation.
    """
    unet, params, identity, schedule = denoiser.unet, denoiser.params, denoiser.identity, denoiser.schedule
    network = unet, params, identity, schedule
    return _stacked([mean for mean, _ in _moments_of_levels(*network, eval_set, block)])


def replacements_at(replacements: dict[str, np.ndarray], level: int) -> dict[str, np.ndarray]:
    """The fills of one timestep out of `activation_means`."""
    return {site: values[level] for site, values in replacements.items()}


def attention_stats(
    denoiser: Denoiser,
    eval_set: EvalSet,
    *,
    block: int = 16,
) -> xr.Dataset:
    """Statistics of every head's pattern, dims `head, t, image`; see `metrics.attention`.

    No pattern leaves the network: each is reduced where it arises. `tokens` (a coordinate of `head`) is
    the number of positions attended over, without which an entropy means little. Heads over one position are
    left out and named in the attribute `over_one_key`; see `over_many_keys`.

    Args:
      images: crossed with the timesteps or nested in them, as in `sweeps.ablation_sweep`.
    """
    unet, params, identity, schedule = denoiser.unet, denoiser.params, denoiser.identity, denoiser.schedule
    images, timesteps, key = eval_set.images, eval_set.timesteps, eval_set.key
    count = images.shape[-4]
    block = memory.rows_at_once(block, memory.row_bytes(unet))
    params, identity, schedule = devices.everywhere(devices.over(block), (params, identity, schedule))
    columns: dict[str, list] = {}
    for level, t in enumerate(timesteps):
        pictures, numbers = images_at(images, level)
        parts = [
            _captured(unet, params, identity, schedule, x0, int(t), key, index, told, collection=ATTENTION)
            for x0, index, told, _ in _blocks(pictures, numbers, eval_set.condition_at(level), block)
        ]
        for site in parts[0]:
            joined = [np.concatenate(values)[:count] for values in zip(*(part[site] for part in parts))]
            columns.setdefault(site, []).append(joined)  # statistic x (image, head)
    nothing = np.empty((0, len(timesteps), count))
    heads = [f"{site}{i}" for site, levels in columns.items() for i in range(levels[0][0].shape[1])]
    variables = {
        name: (
            ("head", "t", "image"),
            np.concatenate(
                [nothing, *(np.stack([level[k].T for level in levels], 1) for levels in columns.values())]
            ).astype(np.float32),
        )
        for k, name in enumerate(AttentionStatistics._fields)
    }
    keys = [_keys(unet, site) for site, levels in columns.items() for _ in range(levels[0][0].shape[1])]
    dataset = xr.Dataset(
        variables,
        coords={
            "head": np.array(heads, dtype=str),
            "t": np.asarray(timesteps, np.int32),
            "image": np.arange(count),
            "log_snr": ("t", np.asarray(schedule.log_snr)[np.asarray(timesteps)]),
            "tokens": ("head", np.asarray(keys, np.int32)),
        },
    )
    return over_many_keys(dataset)


def over_many_keys(statistics: xr.Dataset) -> xr.Dataset:
    """Statistics of the heads that attend over more than one position; the others' names as `over_one_key`.

    The pattern of a head over one position is 1 whatever the input: entropy and its ceiling ln 1
    are both 0, and their ratio means nothing.

    Args:
      statistics: dim `head` with coordinate `tokens`, the number of positions attended over.
    """
    single = statistics["tokens"].values < 2
    names = [str(name) for name in statistics["head"].values[single]]
    names = sorted({*names, *statistics.attrs.get("over_one_key", ())})
    return statistics.isel(head=~single).assign_attrs(over_one_key=names)


def _keys(unet: UNetConfig, site: str) -> int:
    return next(stage.resolution**2 for stage in stages(unet) if f"{stage.name}.head" == site)
