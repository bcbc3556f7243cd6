"""What a model does inside: activations of sites and attention patterns, as labeled arrays."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from mechdiff.api.images import Given, eval_images, number_wanted
from mechdiff.api.replacing import replacements_of
from mechdiff.core import keys, ranges
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.interventions.components import pattern_site
from mechdiff.models.blocks import PATTERNS
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import descriptions
from mechdiff.storage.run_log import progress
from mechdiff.study.eval_images import EvalImages
from mechdiff.sweeps import activation_datasets
from mechdiff.sweeps.activations import of_batch
from mechdiff.sweeps.attention_patterns import heads_of

Timesteps = int | Sequence[int] | None
MAX_WITH_ACTIVATIONS, MAX_WITH_PATTERNS = 16, 4  # images, where no number is given


def activations(
    model: Any,
    images: Given,
    *,
    sites: str,
    timesteps: Timesteps = None,
    n: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Activations of sites, before their own gates act, on noised images.

    Args:
      model: a `Model`; its intervention acts.
      images: see `images.eval_images`.
      n: how many of them; None: all that are given, at most 16, and of `EvalImages` all.
      sites: regular expression that whole names of sites match, such as `mid.*`.
      timesteps: one or more integers in [0, T); None: the one in the middle of log-SNR.
      seed: of the noise: image i has the same noise at every timestep.
    Returns:
      As of `sweeps.activation_datasets.activations`.

    Raises:
      ConfigError: a pattern that matches no site, a timestep outside [0, T), or a patched model.
    """
    if not isinstance(sites, str):
        raise ConfigError(f"sites={shorten(sites)}: expected a regular expression")
    prepared = eval_images(model, images, number_wanted(model, images, n, MAX_WITH_ACTIVATIONS))
    key = keys.stream(jax.random.key(seed), "scored noise")
    datasets = []
    for t in _watched(_timesteps(model.denoiser, timesteps), f"activations of {model.name}"):
        eval_set = prepared.scored_set([t], key)
        datasets.append(activation_datasets.activations(_acting(model, t), eval_set, sites))
    together = xr.concat(
        datasets, "t", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    return together.assign_attrs(_facts(model, prepared, seed))


def attention(
    model: Any,
    images: Given,
    *,
    heads: str,
    timesteps: Timesteps = None,
    n: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Attention patterns, a variable a head: dims `t, image, query, key` (positions row by row), summing to 1
    over keys.

    Args:
      heads: regular expression that whole names of heads match, such as `up1.attn1.head3`.
      n, others: as of `activations`, but None: at most 4.

    Raises:
      ConfigError: a pattern that matches no head; no head's attention pattern can be read.
    """
    chosen = _matching("head", heads, [head.name for head in heads_of(model.denoiser)])
    timesteps = _timesteps(model.denoiser, timesteps)
    examined = eval_images(model, images, number_wanted(model, images, n, MAX_WITH_PATTERNS))
    key = keys.stream(jax.random.key(seed), "scored noise")
    captured = [
        of_batch(_acting(model, t), examined.scored_set([t], key).batch(0), collection=PATTERNS)
        for t in _watched(timesteps, f"attention of {model.name}")
    ]
    variables = {}
    for name in chosen:
        component = model.component(name)
        of_site = [
            values.get(component.site, values.get(pattern_site(component.site))) for values in captured
        ]
        stacked = np.stack([np.asarray(pattern)[:, component.index[0]] for pattern in of_site])
        variables[name] = _variable(stacked, ("query", "key"), f"attention pattern of {name}")
    labeled = xr.Dataset(variables, coords=_coordinates(model, timesteps, len(examined.scored)))
    return descriptions.described(labeled).assign_attrs(_facts(model, examined, seed))


def _watched(timesteps: list[int], title: str) -> Iterator[int]:
    """Each of `timesteps`, with a progress bar."""
    with progress(len(timesteps), desc=title, unit="timestep") as bar:
        for t in timesteps:
            yield t
            bar.update()


def _facts(model: Any, prepared: EvalImages, seed: int) -> dict[str, Any]:
    return {"denoiser": model.name, "intervention": model.doing, "inputs": prepared.label, "seed": seed}


def _timesteps(denoiser: Examinable, timesteps: Timesteps) -> list[int]:
    if timesteps is None:
        return timesteps_by_log_snr(denoiser.schedule, 1).tolist()
    steps = denoiser.schedule.steps
    several = timesteps if isinstance(timesteps, Iterable) and not isinstance(timesteps, str) else [timesteps]
    listed = [ranges.whole("timesteps", t) for t in several]
    if not listed:
        raise ConfigError(f"timesteps {shorten(timesteps)}: expected one or more integers in [0, {steps})")
    for t in listed:
        if not 0 <= t < steps:
            raise ConfigError(f"timestep {t} is out of range; integers in [0, {steps})")
    return listed


def _acting(model: Any, t: int) -> Examinable:
    """A denoiser whose identity is what the model does at `t`."""
    patched = [name for name, source in model.sources.items() if not source.mean]
    if patched:
        raise ConfigError(
            f"activations of a patched model can't be read ({patched[0]}); use model.untouched(), or "
            "ablate(..., 'mean') in place of patch"
        )
    shared, _ = replacements_of(model.denoiser, model.intervention, model.sources, [t], 0)
    values = {site: value[0] for site, value in shared.items()}
    replacement = dict(model.intervention.replacement) | values
    acting = dataclasses.replace(model.intervention, replacement=replacement)
    return dataclasses.replace(model.denoiser, identity=acting)


def _matching(what: str, pattern: str, names: list[str]) -> list[str]:
    try:
        chosen = [name for name in names if name == pattern or re.fullmatch(pattern, name)]
    except (re.error, TypeError):
        raise ConfigError(f"{what}s={shorten(pattern)}: expected a name or a regular expression") from None
    if not chosen:
        raise ConfigError(unknown(what, pattern, names))
    return chosen


def _variable(values: np.ndarray, axes: Sequence[str], long_name: str) -> xr.Variable:
    sizes = values.shape[2:]
    of_row = tuple(f"{axis}_{size}" for axis, size in zip(axes, sizes, strict=True))
    return xr.Variable(("t", "image", *of_row), values, attrs={"long_name": long_name, "units": "1"})


def _coordinates(model: Any, timesteps: Sequence[int], n: int) -> dict[str, Any]:
    timesteps = np.asarray(timesteps, np.int32)
    log_snr = np.asarray(model.denoiser.schedule.log_snr)[timesteps]
    return {"t": ("t", timesteps), "image": np.arange(n), "log_snr": ("t", log_snr)}
