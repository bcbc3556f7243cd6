"""What the untouched network does: activations, their moments, and statistics of its attention patterns."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core import devices
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.components import HEAD, pattern_site, site_type
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models.attention_stats import AttentionStatistics
from mechdiff.models.denoiser import Examinable
from mechdiff.models.layers import ATTENTION, PATTERNS
from mechdiff.sweeps.execution import memory
from mechdiff.sweeps.execution.shown import shown_at


@functools.partial(jax.jit, static_argnames=("collection",))
def _captured(denoiser, x0, t, key, indices, condition, *, collection):
    """What one collection holds of each image; images are shared out over the devices."""

    def local(denoiser, t, key, x0, indices, condition):
        rows = jnp.full(x0.shape[0], t)
        x_t = q_sample(denoiser.schedule, x0, rows, image_noise(key, indices, x0.shape[1:]))
        return denoiser.captured(denoiser.identity, x_t, rows, condition, collection=collection)[1]

    mesh, specs = devices.over(len(x0)), (ALL, ALL, ALL, IMAGES, IMAGES, IMAGES)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=IMAGES, check_vma=False)
    return run(denoiser, t, key, x0, indices, condition)


@jax.jit
def _moments(denoiser, x0, t, key, indices, condition, weights):
    """Mean of every site over the real rows, and the sum of their squared distances from it."""
    values = _captured(denoiser, x0, t, key, indices, condition, collection=CAPTURED)
    mean = jax.tree.map(lambda a: jnp.tensordot(weights / weights.sum(), a, 1), values)
    return mean, jax.tree.map(lambda a, m: jnp.tensordot(weights, (a - m) ** 2, 1), values, mean)


def _blocks(eval_set: EvalSet, t_index: int, block: int):
    """Blocks of one shape of what is shown at one timestep: images, indices, condition, and weights; the last
    is padded with repeats of weight 0."""
    for start in range(0, eval_set.count, block):
        places = np.arange(start, start + block)
        weights = (places < eval_set.count).astype(np.float32)
        yield *shown_at(eval_set, t_index, np.minimum(places, eval_set.count - 1)), weights


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
    """Activation of every site on each image at one timestep: site -> `(batch, *site)`.

    Args:
      key, indices: image i has the noise of `image_noise(key, i)`.
      collection: `sites`; or `patterns` for the attention patterns `(batch, heads, tokens, tokens)`.
      condition: what each image is denoised under, leaves `(batch, ...)`; None: nothing.
    """
    placed = devices.everywhere(devices.over(len(x0)), denoiser)
    return _captured(placed, x0, t, key, indices, condition, collection=collection)


def activation_moments(
    denoiser: Examinable, eval_set: EvalSet, *, block: int = 16
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean and standard deviation over images of every site, per timestep and position.

    Blocks are joined by the rule of Chan et al. 1983, in float64. Arguments and shapes are those of
    `activation_means`.
    """
    means, deviations = zip(*_moments_by_timestep(denoiser, eval_set, block), strict=True)
    return _stacked(means), _stacked(deviations)


def _stacked(trees: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Site -> `(timesteps, *site)`; empties the trees on the way, since large ones fill the memory."""
    return {site: np.stack([tree.pop(site) for tree in trees]) for site in list(trees[0])}


def _moments_by_timestep(denoiser: Examinable, eval_set: EvalSet, block: int):
    """Mean and standard deviation of every site, float32, timestep by timestep."""
    network = denoiser.network
    block = memory.rows_at_once(block, memory.row_bytes(network) + 2 * memory.replacement_bytes(network))
    placed = devices.everywhere(devices.over(block), denoiser)
    for t_index, t in enumerate(eval_set.timesteps):
        count, mean, spread = 0.0, {}, {}
        for x0, indices, condition, weights in _blocks(eval_set, t_index, block):
            moments = _moments(placed, x0, int(t), eval_set.key, indices, condition, weights)
            part, around = ({site: np.asarray(a, np.float64) for site, a in tree.items()} for tree in moments)
            more = float(weights.sum())
            share = more / (count + more)
            for site, value in part.items():
                shift = value - mean.get(site, 0.0)
                spread[site] = spread.get(site, 0.0) + around[site] + shift**2 * (count * share)
                mean[site] = mean.get(site, 0.0) + shift * share
            count += more
        deviation = {site: np.sqrt(value / count) for site, value in spread.items()}
        yield tuple({s: a.astype(np.float32) for s, a in tree.items()} for tree in (mean, deviation))


def activation_means(denoiser: Examinable, eval_set: EvalSet, *, block: int = 16) -> dict[str, np.ndarray]:
    """Mean activation of every site over images, per timestep and position: replacements of `mean` ablation.

    Args:
      eval_set: other images than those that are scored; their noise is one draw an image, shared by all
        timesteps.
      block: images at once.
    Returns:
      site -> `(timesteps, *site)`, where `site` is the shape of one row of that activation.
    """
    return _stacked([mean for mean, _ in _moments_by_timestep(denoiser, eval_set, block)])


def replacements_at(replacements: dict[str, np.ndarray], t_index: int) -> dict[str, np.ndarray]:
    """The replacements of one timestep out of `activation_means`."""
    return {site: values[t_index] for site, values in replacements.items()}


def attention_stats(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    block: int = 16,
) -> xr.Dataset:
    """Statistics of every head's pattern, dims `head, t, image`; see `models.attention_stats`.

    No pattern leaves the network: each is reduced where it arises. `tokens` (a coordinate of `head`) is
    the number of positions attended over, without which an entropy means little. Heads over one position are
    left out and named in the attribute `over_one_key`; see `over_many_keys`.

    Args:
      eval_set: images, crossed with the timesteps or nested in them.
    """
    timesteps, count = eval_set.timesteps, eval_set.count
    block = memory.rows_at_once(block, memory.row_bytes(denoiser.network))
    placed = devices.everywhere(devices.over(block), denoiser)
    columns: dict[str, list] = {}
    for t_index, t in enumerate(timesteps):
        parts = [
            _captured(placed, x0, int(t), eval_set.key, indices, condition, collection=ATTENTION)
            for x0, indices, condition, _ in _blocks(eval_set, t_index, block)
        ]
        for site in parts[0]:
            joined = [np.concatenate(values)[:count] for values in zip(*(part[site] for part in parts))]
            columns.setdefault(site, []).append(joined)  # statistic x (image, head)
    nothing = np.empty((0, len(timesteps), count))
    named = [site for site in denoiser.identity.gate if site_type(site) == HEAD]
    outputs = {pattern_site(site): site for site in named}  # what heads are called by
    heads = [
        f"{outputs.get(site, site)}{i}"
        for site, levels in columns.items()
        for i in range(levels[0][0].shape[1])
    ]
    variables = {
        name: (
            ("head", "t", "image"),
            np.concatenate(
                [nothing, *(np.stack([level[k].T for level in levels], 1) for levels in columns.values())]
            ).astype(np.float32),
        )
        for k, name in enumerate(AttentionStatistics._fields)
    }
    keys = _keys(denoiser, eval_set)
    tokens = [keys[site] for site, levels in columns.items() for _ in range(levels[0][0].shape[1])]
    dataset = xr.Dataset(
        variables,
        coords={
            "head": np.array(heads, dtype=str),
            "t": np.asarray(timesteps, np.int32),
            "image": np.arange(count),
            "log_snr": ("t", np.asarray(denoiser.schedule.log_snr)[timesteps]),
            "tokens": ("head", np.asarray(tokens, np.int32)),
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


def _keys(denoiser: Examinable, eval_set: EvalSet) -> dict[str, int]:
    """Positions that the patterns of each site attend over, by shape alone."""
    x0, indices, condition, _ = next(_blocks(eval_set, 0, 1))
    t = int(eval_set.timesteps[0])
    patterns = functools.partial(_captured, collection=PATTERNS)
    shapes = jax.eval_shape(patterns, denoiser, x0, t, eval_set.key, indices, condition)
    return {site: pattern.shape[-1] for site, pattern in shapes.items()}
