"""Does function follow entropy? A direct test: a head's entropy is moved, the size of its output is not.

A temperature of a head's logits moves the entropy of its pattern, but also the norm of its output, which
could raise the loss by itself. At matched norm the head's gate, image by image, gives the output back the
norm that it had:
  gate = |z| / |z tempered|, norms over positions and depth.
This definition is ours.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core.config import UNetConfig
from mechdiff.core.types import Images, PRNGKey, PyTree, Timesteps
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample, to_eps
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.build import set_temperature
from mechdiff.interventions.components import Component, select
from mechdiff.interventions.gates import CAPTURED
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.layers import ATTENTION
from mechdiff.models.unet import forward
from mechdiff.sweeps.ablation import component_coords
from mechdiff.sweeps.attention_patterns import heads_of, unet_of


def matched_temperature(
    unet: UNetConfig,
    params: PyTree,
    identity: Intervention,
    x_t: Images,
    t: Timesteps,
    what,
    value: float,
) -> Intervention:
    """A temperature of the selected heads with gates that give every head's output, on every image, the norm
    that it has without.

    The gates hold for these images and no others: they have a row axis. Where heads of several sites are
    chosen, a site is matched under what the sites before it do.

    Args:
      what: heads, as for `ablate`; their replacements become zero.
      value: of the temperature, above 0.
    """
    tempered = set_temperature(identity, what, value)
    sites = {site for site, _ in select(identity, what).values()}
    tempered = dataclasses.replace(
        tempered,
        replacement={**tempered.replacement, **{site: np.zeros((1, 1, 1), np.float32) for site in sites}},
    )
    rows = lambda a: np.tile(np.asarray(a), (len(x_t), 1))
    per_row = {site: rows(leaf) for site, leaf in tempered.temperature.items()}
    tempered = dataclasses.replace(tempered, temperature=per_row)
    gate = {**identity.gate, **_matching(unet, params, identity, tempered, x_t, t, rounds=len(sites))}
    return dataclasses.replace(tempered, gate=gate)


@functools.partial(jax.jit, static_argnames=("unet", "rounds"))
def _matching(unet, params, identity, tempered, x_t, t, *, rounds) -> dict[str, Float[Array, "batch heads"]]:
    """Gates of the tempered heads; each round settles one more site, those before it being matched."""
    norms = lambda sites: {s: jnp.sqrt((sites[s] ** 2).sum((1, 3))) for s in tempered.temperature}
    clean = norms(forward(unet, params, identity, x_t, t, capture=(CAPTURED,))[1][CAPTURED])
    gate = {}
    for _ in range(rounds):
        here = dataclasses.replace(tempered, gate={**identity.gate, **gate})
        found = norms(forward(unet, params, here, x_t, t, capture=(CAPTURED,))[1][CAPTURED])
        for site, norm in found.items():
            ratio = clean[site] / jnp.where(norm > 0, norm, 1)
            gate[site] = jnp.where(tempered.temperature[site] == 1, identity.gate[site], ratio)
    return gate


@functools.partial(jax.jit, static_argnames=("unet", "matched"))
def _tempered(
    unet: UNetConfig,
    matched: bool,
    schedule: NoiseSchedule,
    params: PyTree,
    identity: Intervention,
    temperatures: PyTree,
    x0: Images,
    t: Int[Array, ""],
    indices: Int[Array, " batch"],
    key: PRNGKey,
) -> tuple[Array, PyTree]:
    """Each image's clean loss; loss, change, entropy and gate at every setting, `(settings, batch, ...)`."""
    noise, at = image_noise(key, indices, x0.shape[1:]), jnp.full(len(x0), t)
    x_t = q_sample(schedule, x0, at, noise)
    mean_square = lambda x: jnp.mean(x * x, axis=(1, 2, 3))

    def predict(intervention):
        output, seen = forward(unet, params, intervention, x_t, at, capture=(ATTENTION,))
        return to_eps(unet.prediction, schedule, x_t, at, output), seen[ATTENTION]

    clean = predict(identity)[0]

    def one(setting):
        rows = {site: jnp.tile(leaf, (len(x0), 1)) for site, leaf in setting.items()}
        changed = dataclasses.replace(identity, temperature=rows)
        gate = _matching(unet, params, identity, changed, x_t, at, rounds=1) if matched else {}
        eps, seen = predict(dataclasses.replace(changed, gate={**identity.gate, **gate}))
        entropy = {site: statistics.entropy for site, statistics in seen.items()}
        return mean_square(eps - noise), mean_square(eps - clean), entropy, gate

    return mean_square(clean - noise), jax.lax.map(one, temperatures)


def temperature_effects(
    denoiser: Denoiser,
    eval_set: EvalSet,
    values: Sequence[float] = (0.25, 0.5, 2.0, 4.0),
    *,
    heads: Sequence[Component] | None = None,
    matched: bool = True,
    block: int = 16,
) -> xr.Dataset:
    """Denoising loss with one head's entropy moved by a temperature, image by image.

    Args:
      images: in [-1, 1]; image i has the noise of `image_noise(key, i)`, as in `sweeps.ablation_sweep`.
      values: temperatures above 0; above 1 flatten the pattern.
      heads: all of the network if None.
      matched: at the clean norm of the head's output, see `matched_temperature`.
    Returns:
      Dataset with `loss`, `change`, the head's `entropy` (nats) under its temperature and the `gate` that
      restored the norm (1 where not matched), dims `temperature, component, t, image`; `clean_loss`, dims `t,
      image`.
    """
    images, timesteps, key = eval_set.images, eval_set.timesteps, eval_set.key
    heads = heads_of(unet_of(denoiser), heads)
    settings = [(value, head) for value in values for head in heads]
    leaves = [set_temperature(denoiser.identity, [head], value).temperature for value, head in settings]
    stacked = {site: np.stack([leaf[site] for leaf in leaves]) for site in leaves[0]}
    shape = (4, len(settings), len(timesteps), len(images))
    found, clean = np.ones(shape, np.float32), np.empty(shape[2:], np.float32)
    network = denoiser.unet, matched, denoiser.schedule, denoiser.params, denoiser.identity, stacked
    images = np.asarray(images)
    for level, t in enumerate(timesteps):
        for start in range(0, len(images), block):
            index = np.resize(np.arange(start, min(start + block, len(images))), min(block, len(images)))
            loss, (losses, changes, entropy, gate) = _tempered(*network, images[index], int(t), index, key)
            where = slice(start, min(start + block, len(images)))
            count = where.stop - start
            clean[level, where] = loss[:count]
            found[0, :, level, where], found[1, :, level, where] = losses[:, :count], changes[:, :count]
            for row, (_, head) in enumerate(settings):
                unit = head.index[0]
                found[2, row, level, where] = entropy[head.site][row, :count, unit]
                if matched:
                    found[3, row, level, where] = gate[head.site][row, :count, unit]
    found = found.reshape(4, len(values), len(heads), *shape[2:])
    dims = ("temperature", "component", "t", "image")
    return xr.Dataset(
        {
            **{
                name: (dims, values)
                for name, values in zip(("loss", "change", "entropy", "gate"), found, strict=True)
            },
            "clean_loss": (dims[2:], clean),
        },
        coords={
            "temperature": np.asarray(values, np.float64),
            **component_coords(denoiser, heads, timesteps, len(images)),
        },
        attrs={"denoiser": denoiser.name, "matched": int(matched)},
    )
