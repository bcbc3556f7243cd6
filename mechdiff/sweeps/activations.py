"""The network without intervention: activations, their moments, and statistics of attention patterns."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core import devices
from mechdiff.core.batches import batches
from mechdiff.core.devices import ALL
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import BATCH, EvalBatch, EvalSet
from mechdiff.interventions.components import HEAD, pattern_site, site_type
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models.attention_stats import AttentionStatistics
from mechdiff.models.blocks import ATTENTION, PATTERNS
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import footprint, memory


@functools.partial(jax.jit, static_argnames=("collection",))
def _captured(denoiser: Examinable, batch: EvalBatch, *, collection: str) -> dict[str, Any]:
    """One collection of captured values for each image; images are sharded over the devices."""

    def local(denoiser, batch):
        x_t, t, _ = batch.noised(denoiser.schedule)
        return denoiser.captured(denoiser.identity, x_t, t, batch.condition, collection=collection)[1]

    mesh = devices.over(len(batch.images))
    return devices.map_over_images(local, mesh, (ALL, BATCH))(denoiser, batch)


@jax.jit
def _moments(denoiser: Examinable, batch: EvalBatch, weights: Float[Array, " batch"]):
    """Mean of every site over rows of weight 1, and the sum of their squared deviations from it."""
    values = _captured(denoiser, batch, collection=CAPTURED)
    mean = jax.tree.map(lambda a: jnp.tensordot(weights / weights.sum(), a, 1), values)
    return mean, jax.tree.map(lambda a, m: jnp.tensordot(weights, (a - m) ** 2, 1), values, mean)


def activations(
    denoiser: Examinable,
    x0: Images,
    t: int,
    key: PRNGKey,
    indices: Int[np.ndarray, " batch"],
    condition: PyTree = None,
    *,
    collection: str = CAPTURED,
) -> dict[str, Float[Array, "batch ..."]]:
    """`of_batch`, whose batch is given by its fields: see `EvalBatch`."""
    return of_batch(denoiser, EvalBatch(x0, indices, t, key, condition), collection=collection)


def of_batch(
    denoiser: Examinable, batch: EvalBatch, *, collection: str = CAPTURED
) -> dict[str, Float[Array, "batch ..."]]:
    """Activation of every site on each image of a batch: site -> `(batch, *site)`.

    Args:
      collection: `sites`; or `patterns` for the attention patterns `(batch, heads, tokens, tokens)`.
    """
    placed = devices.everywhere(devices.over(len(batch.images)), denoiser)
    return _captured(placed, batch, collection=collection)


def activation_moments(
    denoiser: Examinable, eval_set: EvalSet, *, block: int = 16
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean and standard deviation over images of every site, per timestep and position.

    Moments of blocks are combined by the formula of Chan et al. 1983, in float64. Arguments and shapes are
    those of `activation_means`.
    """
    means, deviations = zip(*_moments_by_timestep(denoiser, eval_set, block), strict=True)
    return _stacked(means), _stacked(deviations)


def _stacked(trees: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Site -> `(timesteps, *site)`; empties the trees while stacking, to save memory."""
    return {site: np.stack([tree.pop(site) for tree in trees]) for site in list(trees[0])}


def _moments_by_timestep(denoiser: Examinable, eval_set: EvalSet, block: int):
    """Mean and standard deviation of every site, float32, timestep by timestep."""
    if not eval_set.count:
        raise ConfigError(
            "no reference images, over which mean, noise and optimal ablation average; give some"
        )
    network = denoiser.network
    of_image = footprint.row_bytes(network) + 2 * footprint.replacement_bytes(network)
    block = memory.images_at_once(block, of_image)
    placed = devices.everywhere(devices.over(block), denoiser)
    for t_index in range(len(eval_set.timesteps)):
        count, mean, squares = 0.0, {}, {}
        for batch in batches(eval_set.count, block):
            moments = _moments(placed, eval_set.batch(t_index, batch.indices), batch.weights)
            of_batch, around = (
                {site: np.asarray(a, np.float64) for site, a in tree.items()} for tree in moments
            )
            added = float(batch.count)
            share = added / (count + added)
            for site, value in of_batch.items():
                shift = value - mean.get(site, 0.0)
                squares[site] = squares.get(site, 0.0) + around[site] + shift**2 * (count * share)
                mean[site] = mean.get(site, 0.0) + shift * share
            count += added
        deviation = {site: np.sqrt(value / count) for site, value in squares.items()}
        yield tuple({s: a.astype(np.float32) for s, a in tree.items()} for tree in (mean, deviation))


def activation_means(denoiser: Examinable, eval_set: EvalSet, *, block: int = 16) -> dict[str, np.ndarray]:
    """Mean activation of every site over images, per timestep and position: replacements of `mean` ablation.

    Args:
      eval_set: reference images, other than those that are scored; each has one noise for all timesteps.
      block: images at once.
    Returns:
      site -> `(timesteps, *site)`, where `site` is the shape of one row of that activation.
    """
    return _stacked([mean for mean, _ in _moments_by_timestep(denoiser, eval_set, block)])


def replacements_at(replacements: dict[str, np.ndarray], t_index: int) -> dict[str, np.ndarray]:
    """The replacements at one timestep, from those of `activation_means`: site -> `(*site)`."""
    return {site: values[t_index] for site, values in replacements.items()}


def attention_stats(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    block: int = 16,
) -> xr.Dataset:
    """Statistics of every head's pattern, dims `head, t, image`; see `models.attention_stats`.

    No pattern is stored: each is reduced where it is computed. `tokens` (a coordinate of `head`) counts the
    keys, without which an entropy means little. Heads with one key are left out and named in the attribute
    `over_one_key`; see `over_many_keys`.

    Args:
      eval_set: images, crossed with the timesteps or nested in them.
    """
    timesteps, count = eval_set.timesteps, eval_set.count
    block = memory.images_at_once(block, footprint.row_bytes(denoiser.network))
    placed = devices.everywhere(devices.over(block), denoiser)
    by_timestep = []  # site -> statistics (image, head)
    for t_index in range(len(timesteps)):
        blocks = [
            _captured(placed, eval_set.batch(t_index, batch.indices), collection=ATTENTION)
            for batch in batches(count, block)
        ]
        by_timestep.append(
            jax.tree.map(lambda *values: np.concatenate([np.asarray(v) for v in values])[:count], *blocks)
        )
    heads, tokens = _heads_and_keys(denoiser, eval_set, by_timestep[0])
    shape = (len(heads), len(timesteps), count)
    dataset = xr.Dataset(
        {
            name: (("head", "t", "image"), _all_heads(by_timestep, name, shape))
            for name in AttentionStatistics._fields
        },
        coords={
            "head": np.array(heads, dtype=str),
            "t": np.asarray(timesteps, np.int32),
            "image": np.arange(count),
            "log_snr": ("t", np.asarray(denoiser.schedule.log_snr)[timesteps]),
            "tokens": ("head", np.asarray(tokens, np.int32)),
        },
    )
    return over_many_keys(dataset)


def _heads_and_keys(
    denoiser: Examinable, eval_set: EvalSet, captured: Mapping[str, AttentionStatistics]
) -> tuple[list[str], list[int]]:
    """Names of all heads, site by site, and the number of keys of each."""
    named = [site for site in denoiser.identity.gate if site_type(site) == HEAD]
    outputs = {pattern_site(site): site for site in named}  # heads are named by their outputs
    keys, heads, tokens = _keys(denoiser, eval_set), [], []
    for site, statistics in captured.items():
        of_site = statistics.entropy.shape[1]
        heads += [f"{outputs.get(site, site)}{head}" for head in range(of_site)]
        tokens += [keys[site]] * of_site
    return heads, tokens


def _all_heads(
    by_timestep: Sequence[Mapping[str, AttentionStatistics]], statistic: str, shape: tuple[int, int, int]
) -> Float[np.ndarray, "head t image"]:
    """One statistic of the heads of all sites."""
    values, first = np.empty(shape, np.float32), 0
    for site in by_timestep[0]:
        of_site = np.stack([getattr(at_t[site], statistic).T for at_t in by_timestep], axis=1)
        values[first : first + len(of_site)] = of_site
        first += len(of_site)
    return values


def over_many_keys(statistics: xr.Dataset) -> xr.Dataset:
    """Statistics of the heads with more than one key; the others are named in the attribute `over_one_key`.

    The pattern of a head with one key is 1 whatever the input: entropy and its maximum ln 1 are both 0, and
    normalized entropy is undefined.

    Args:
      statistics: dim `head` with coordinate `tokens`, the number of keys.
    """
    single = statistics["tokens"].values < 2
    names = [str(name) for name in statistics["head"].values[single]]
    names = sorted({*names, *statistics.attrs.get("over_one_key", ())})
    return statistics.isel(head=~single).assign_attrs(over_one_key=names)


def _keys(denoiser: Examinable, eval_set: EvalSet) -> dict[str, int]:
    """Site -> number of keys of its patterns, by shapes alone."""
    batch = eval_set.batch(0, np.arange(1))
    patterns = functools.partial(_captured, collection=PATTERNS)
    shapes = jax.eval_shape(patterns, denoiser, batch)
    return {site: pattern.shape[-1] for site, pattern in shapes.items()}
