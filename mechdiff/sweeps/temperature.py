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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff.core.batches import batches
from mechdiff.core.config import UNetConfig
from mechdiff.core.types import Images, PyTree, Timesteps
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.diffusion.process import to_eps
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
    per_row = {site: np.tile(np.asarray(leaf), (len(x_t), 1)) for site, leaf in tempered.temperature.items()}
    tempered = dataclasses.replace(tempered, temperature=per_row)
    gate = {**identity.gate, **_matching(unet, params, identity, tempered, x_t, t, rounds=len(sites))}
    return dataclasses.replace(tempered, gate=gate)


@functools.partial(jax.jit, static_argnames=("unet", "rounds"))
def _matching(unet, params, identity, tempered, x_t, t, *, rounds) -> dict[str, Float[Array, "batch heads"]]:
    """Gates of the tempered heads; each round settles one more site, those before it being matched."""

    def norms(intervention):
        sites = forward(unet, params, intervention, x_t, t, capture=(CAPTURED,))[1][CAPTURED]
        return {site: jnp.sqrt((sites[site] ** 2).sum((1, 3))) for site in tempered.temperature}

    clean = norms(identity)
    gate = {}
    for _ in range(rounds):
        here = dataclasses.replace(tempered, gate={**identity.gate, **gate})
        for site, norm in norms(here).items():
            ratio = clean[site] / jnp.where(norm > 0, norm, 1)
            gate[site] = jnp.where(tempered.temperature[site] == 1, identity.gate[site], ratio)
    return gate


class _Tempered(NamedTuple):
    """What a temperature does, `(settings, batch, ...)`."""

    loss: Float[Array, "settings batch"]
    change: Float[Array, "settings batch"]
    entropy: dict[str, Float[Array, "settings batch heads"]]
    gate: dict[str, Float[Array, "settings batch heads"]]


@functools.partial(jax.jit, static_argnames=("matched",))
def _tempered(
    denoiser: Denoiser, temperatures: PyTree, batch: EvalBatch, *, matched: bool
) -> tuple[Float[Array, " batch"], _Tempered]:
    """Each image's clean loss, and what every setting of the temperatures does."""
    unet, params, identity = denoiser.unet, denoiser.params, denoiser.identity
    x_t, t, noise = batch.noised(denoiser.schedule)

    def mean_square(x):
        return jnp.mean(x * x, axis=(1, 2, 3))

    def predict(intervention):
        output, captured = forward(unet, params, intervention, x_t, t, capture=(ATTENTION,))
        return to_eps(unet.prediction, denoiser.schedule, x_t, t, output), captured[ATTENTION]

    clean = predict(identity)[0]

    def under(setting):
        rows = {site: jnp.tile(leaf, (len(x_t), 1)) for site, leaf in setting.items()}
        changed = dataclasses.replace(identity, temperature=rows)
        gate = _matching(unet, params, identity, changed, x_t, t, rounds=1) if matched else {}
        eps, patterns = predict(dataclasses.replace(changed, gate={**identity.gate, **gate}))
        entropy = {site: statistics.entropy for site, statistics in patterns.items()}
        return _Tempered(mean_square(eps - noise), mean_square(eps - clean), entropy, gate)

    return mean_square(clean - noise), jax.lax.map(under, temperatures)


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
      eval_set: images in [-1, 1], timesteps and noise, as in `sweeps.ablation_sweep`.
      values: temperatures above 0; above 1 flatten the pattern.
      heads: all of the network if None.
      matched: at the clean norm of the head's output, see `matched_temperature`.
      block: images at once.
    Returns:
      Dataset with `loss`, `change`, the head's `entropy` (nats) under its temperature and the `gate` that
      restored the norm (1 where not matched), dims `temperature, component, t, image`; `clean_loss`, dims `t,
      image`.
    """
    timesteps, count = eval_set.timesteps, eval_set.count
    heads = heads_of(unet_of(denoiser), heads)
    settings = [(value, head) for value in values for head in heads]
    leaves = [set_temperature(denoiser.identity, [head], value).temperature for value, head in settings]
    stacked = {site: np.stack([leaf[site] for leaf in leaves]) for site in leaves[0]}
    shape = (len(settings), len(timesteps), count)
    arrays = {name: np.ones(shape, np.float32) for name in ("loss", "change", "entropy", "gate")}
    clean = np.empty(shape[1:], np.float32)
    for t_index in range(len(timesteps)):
        for batch in batches(count, min(block, count)):
            shown = eval_set.batch(t_index, batch.indices)
            clean_loss, tempered = jax.device_get(_tempered(denoiser, stacked, shown, matched=matched))
            where, real = (slice(None), t_index, batch.span), slice(batch.count)
            clean[t_index, batch.span] = clean_loss[real]
            arrays["loss"][where] = tempered.loss[:, real]
            arrays["change"][where] = tempered.change[:, real]
            for row, (_, head) in enumerate(settings):
                cell, unit = (row, t_index, batch.span), head.index[0]
                arrays["entropy"][cell] = tempered.entropy[head.site][row, real, unit]
                if matched:
                    arrays["gate"][cell] = tempered.gate[head.site][row, real, unit]
    dims, shape = ("temperature", "component", "t", "image"), (len(values), len(heads), *shape[1:])
    return xr.Dataset(
        {
            **{name: (dims, array.reshape(shape)) for name, array in arrays.items()},
            "clean_loss": (dims[2:], clean),
        },
        coords={
            "temperature": np.asarray(values, np.float64),
            **component_coords(denoiser, heads, timesteps, count),
        },
        attrs={"denoiser": denoiser.name, "matched": int(matched)},
    )
