"""What the untouched network does: mean activations, and statistics of its attention patterns."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Int

from mechdiff.config import UNetConfig
from mechdiff.diffusion import image_noise, q_sample
from mechdiff.gates import CAPTURED
from mechdiff.interventions import Intervention
from mechdiff.layers import ATTENTION
from mechdiff.schedules import NoiseSchedule
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import forward, stages


@functools.partial(jax.jit, static_argnames=("unet", "collection"))
def _captured(unet, params, identity, schedule, x0, t, key, indices, weights, *, collection):
    rows = jnp.full(x0.shape[0], t)
    x_t = q_sample(schedule, x0, rows, image_noise(key, indices, x0.shape[1:]))
    found = forward(unet, params, identity, x_t, rows, capture=(collection,))[1][collection]
    if collection == ATTENTION:
        return found
    return jax.tree.map(lambda a: jnp.tensordot(weights, a, 1), found)  # sum over the real rows


def _blocks(images: np.ndarray, indices: np.ndarray, block: int):
    """Image blocks of one shape; the last is padded with repeats of weight 0."""
    for start in range(0, len(images), block):
        chosen = np.arange(start, start + block)
        weights = (chosen < len(images)).astype(np.float32)
        chosen = np.minimum(chosen, len(images) - 1)
        yield images[chosen], indices[chosen], weights


def activation_means(
    unet: UNetConfig,
    params: PyTree,
    identity: Intervention,
    schedule: NoiseSchedule,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
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
    indices = np.arange(len(images))
    per_level = []
    for t in timesteps:
        total = None
        for x0, index, weights in _blocks(images, indices, block):
            part = _captured(
                unet, params, identity, schedule, x0, int(t), key, index, weights, collection=CAPTURED
            )
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        per_level.append(jax.tree.map(lambda a: np.asarray(a) / len(images), total))
    return {site: np.stack([level[site] for level in per_level]) for site in per_level[0]}


def fills_at(fills: dict[str, np.ndarray], level: int) -> dict[str, np.ndarray]:
    """The fills of one timestep out of `activation_means`."""
    return {site: values[level] for site, values in fills.items()}


def attention_stats(
    unet: UNetConfig,
    params: PyTree,
    identity: Intervention,
    schedule: NoiseSchedule,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    *,
    block: int = 16,
) -> xr.Dataset:
    """Statistics of every head's pattern, dims `head, t, image`; see `metrics.attention`.

    No pattern leaves the network: each is reduced where it arises. `tokens` (a coordinate of `head`) is
    the number of positions attended over, without which an entropy means little.
    """
    indices = np.arange(len(images))
    columns: dict[str, list] = {}
    for t in timesteps:
        parts = [
            _captured(unet, params, identity, schedule, x0, int(t), key, index, weights, collection=ATTENTION)
            for x0, index, weights in _blocks(images, indices, block)
        ]
        for site in parts[0]:
            joined = [
                np.concatenate(values)[: len(images)] for values in zip(*(part[site] for part in parts))
            ]
            columns.setdefault(site, []).append(joined)  # statistic x (image, head)
    names = next(iter(parts[0].values()))._fields
    heads = [f"{site}{i}" for site, levels in columns.items() for i in range(levels[0][0].shape[1])]
    variables = {
        name: (
            ("head", "t", "image"),
            np.concatenate(
                [np.stack([level[k].T for level in levels], 1) for levels in columns.values()]
            ).astype(np.float32),
        )
        for k, name in enumerate(names)
    }
    keys = [_keys(unet, site) for site, levels in columns.items() for _ in range(levels[0][0].shape[1])]
    return xr.Dataset(
        variables,
        coords={
            "head": heads,
            "t": np.asarray(timesteps, np.int32),
            "image": indices,
            "log_snr": ("t", np.asarray(schedule.log_snr)[np.asarray(timesteps)]),
            "tokens": ("head", np.asarray(keys, np.int32)),
        },
    )


def _keys(unet: UNetConfig, site: str) -> int:
    return next(stage.resolution**2 for stage in stages(unet) if f"{stage.name}.head" == site)
