"""Does a head's function follow its entropy? The entropy is changed while the norm of its output is held.

The temperature of a head's logits changes the entropy of its pattern, but also the norm of its output, which
could raise the loss by itself. At matched norm the head's gate restores, image by image, the norm of the
output without temperature:
  gate = |z| / |z tempered|, norms over positions and depth.
This definition is ours.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PyTree
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.build import set_temperature, tempered_site
from mechdiff.interventions.components import HEAD, Component, head_site, site_type
from mechdiff.interventions.record import Intervention
from mechdiff.models.attention_stats import AttentionStatistics
from mechdiff.models.blocks import ATTENTION
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.attention_patterns import check_patterns, heads_of
from mechdiff.sweeps.coords import component_coords
from mechdiff.sweeps.execution.provenance import provenance, result_key, store
from mechdiff.sweeps.in_memory import IMAGES, in_blocks

MEASURED = ("gate", "entropy", "change", "loss")  # of each setting, on every image
Sites = dict[str, Array]  # site -> activations, rows first


class _Outcome(NamedTuple):
    """Results under one setting, per image: losses `(batch,)`; entropies, gates: site -> `(batch, heads)`."""

    loss: Array
    change: Array
    entropy: Sites
    gate: Sites


def _matching(
    captured: Callable[[Intervention], Sites],
    unit_axis: Callable[[str], int],
    identity: Intervention,
    tempered: Intervention,
) -> Sites:
    """Gates that restore the norm of every tempered head's output, per row: they hold for these images only.

    Args:
      captured: activations of these images under an intervention.
      tempered: temperatures of the heads of one site, gates of the identity.
      unit_axis: the negative axis of a site's activation that heads run along.
    """
    stored_at = {site: tempered_site(site, tempered.temperature) for site in identity.gate}
    heads = [site for site in stored_at if site_type(site) == HEAD]
    sites = [site for site in heads if stored_at[site] in tempered.temperature]

    def norms(activations: Sites) -> Sites:
        return {site: _norm(activations[site], unit_axis(site)) for site in sites}

    clean, gate = norms(captured(identity)), {}
    for site, norm in norms(captured(tempered)).items():
        ratio = clean[site] / jnp.where(norm > 0, norm, 1)
        untouched = tempered.temperature[stored_at[site]] == 1
        gate[site] = jnp.where(untouched, identity.gate[site], ratio)
    return gate


def _norm(activation: Float[Array, "batch ..."], unit_axis: int) -> Float[Array, "batch heads"]:
    """Norm of every head's output, over all axes but rows and heads."""
    rest = tuple(axis for axis in range(1, activation.ndim) if axis != activation.ndim + unit_axis)
    return jnp.sqrt((activation**2).sum(rest))


@functools.partial(jax.jit, static_argnames="matched")
def _tempered(
    denoiser: Examinable, temperatures: PyTree, batch: EvalBatch, *, matched: bool
) -> tuple[Array, _Outcome]:
    """Each image's clean loss, and the outcome of every setting, leaves `(settings, batch, ...)`."""
    (x_t, t, noise), identity = batch.noised(denoiser.schedule), denoiser.identity

    def mean_square(x: Images) -> Float[Array, " batch"]:
        return jnp.mean(x * x, axis=(1, 2, 3))

    def captured(intervention: Intervention) -> Sites:
        return denoiser.captured(intervention, x_t, t, batch.condition)[1]

    def predict(intervention: Intervention) -> tuple[Images, dict[str, AttentionStatistics]]:
        return denoiser.captured(intervention, x_t, t, batch.condition, collection=ATTENTION)

    clean = predict(identity)[0]

    def outcome(setting: PyTree) -> _Outcome:
        rows = {site: jnp.tile(leaf, (len(x_t), 1)) for site, leaf in setting.items()}
        changed = dataclasses.replace(identity, temperature=rows)
        gate = _matching(captured, denoiser.unit_axis, identity, changed) if matched else {}
        eps, patterns = predict(dataclasses.replace(changed, gate={**identity.gate, **gate}))
        entropy = {site: statistics.entropy for site, statistics in patterns.items()}
        return _Outcome(mean_square(eps - noise), mean_square(eps - clean), entropy, gate)

    return mean_square(clean - noise), jax.lax.map(outcome, temperatures)


def temperature_effects(
    denoiser: Examinable,
    eval_set: EvalSet,
    values: Sequence[float] = (0.25, 0.5, 2.0, 4.0),
    *,
    heads: Sequence[Component] | None = None,
    matched: bool = True,
    block: int = 16,
    folder: Path | None = None,
) -> xr.Dataset:
    """Denoising loss with the entropy of one head changed by a temperature, image by image.

    In a traced function with named patterns (`block0.pattern@1`), p becomes p ** (1 / T), normalized.

    Args:
      eval_set: images in [-1, 1]; image i has the noise of `image_noise(key, i)`, as in
        `ablation.ablation_sweep`.
      values: temperatures above 0; above 1 flatten the pattern.
      heads: all of the network if None.
      matched: with gates that hold the norm of the head's output, image by image.
      block: images at once.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk.
    Returns:
      Dataset with `loss`, `change`, the head's `entropy` (nats) under its temperature and the `gate` that
      restored the norm (1 where not matched), dims `temperature, component, t, image`; `clean_loss`, dims `t,
      image`.
    Raises:
      ConfigError: no temperatures or one twice, no heads, patterns that are unnamed or invalid, or outputs of
        heads without names where their norms are to be matched.
    """
    ranges.distinct("temperatures", tuple(values))
    heads = heads_of(denoiser, heads)
    check_patterns(denoiser, eval_set)
    if matched:
        _check_outputs(heads)
    settings = [(value, head) for value in values for head in heads]
    leaves = [set_temperature(denoiser.identity, [head], value).temperature for value, head in settings]
    stacked = {site: np.stack([leaf[site] for leaf in leaves]) for site in leaves[0]}
    timesteps, total, block = eval_set.timesteps, eval_set.count, min(block, eval_set.count)

    def compute(t_index: int, image_rows: Int[np.ndarray, " block"]) -> dict[str, np.ndarray]:
        loss, outcome = _tempered(denoiser, stacked, eval_set.batch(t_index, image_rows), matched=matched)
        rows = _by_setting(outcome, [head for _, head in settings], stacked)
        return {"gate": np.ones_like(rows["loss"]), **rows, "clean_loss": np.asarray(loss)}

    path = None
    if folder is not None:
        acting = [digests.digest_arrays(stacked), [[head.site, *head.index] for head in heads]]
        path = store(folder, result_key(denoiser, eval_set, tempered=acting, matched=matched, block=block))
    variables = {"clean_loss": IMAGES, **{name: ("setting", *IMAGES) for name in MEASURED}}
    empty = pieces.unfilled(variables, {"setting": len(settings), "t": len(timesteps), "image": total})
    arrays = in_blocks(empty, compute, block, path, f"temperatures of {denoiser.name}")
    dims, shape = ("temperature", "component", *IMAGES), (len(values), len(heads), len(timesteps), total)
    return xr.Dataset(
        {
            **{name: (dims, arrays[name].reshape(shape)) for name in reversed(MEASURED)},
            "clean_loss": (IMAGES, arrays["clean_loss"]),
        },
        coords={
            "temperature": np.asarray(values, np.float64),
            **component_coords(denoiser, heads, timesteps, total),
        },
        attrs={**provenance(denoiser), "matched": int(matched)},
    )


def _by_setting(
    outcome: _Outcome, heads: Sequence[Component], temperatures: Mapping[str, np.ndarray]
) -> dict[str, Float[np.ndarray, "setting batch"]]:
    """Losses, changes, and entropy and gate (if gates were matched) of the head that each setting tempers.

    Args:
      heads: of each setting.
      temperatures: site -> those of all settings.
    """
    outcome = jax.tree.map(np.asarray, outcome)
    sites = [tempered_site(head.site, temperatures) for head in heads]
    entropy = [outcome.entropy[site][row, :, heads[row].index[0]] for row, site in enumerate(sites)]
    values = {"loss": outcome.loss, "change": outcome.change, "entropy": np.stack(entropy)}
    if outcome.gate:
        gates = [outcome.gate[head.site][row, :, head.index[0]] for row, head in enumerate(heads)]
        values["gate"] = np.stack(gates)
    return values


def _check_outputs(heads: Sequence[Component]) -> None:
    for head in heads:
        if head.component_type != HEAD:
            output = head_site(head.site)
            raise ConfigError(
                f"the norm of what {head.name!r} gives can't be matched, since its output has no name; name "
                f'it `checkpoint_name(z, "{output}@2")`, or give matched=False'
            )
