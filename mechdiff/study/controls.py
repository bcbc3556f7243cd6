"""Controls of an examined network: activity of its sites, the untrained twin, random sets of channels."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from mechdiff import stats
from mechdiff.analysis import complexity
from mechdiff.analysis.roles import matched_class, matched_sets
from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import untrained
from mechdiff.models.denoiser import Examinable
from mechdiff.study.examine import DenoiserAndImages
from mechdiff.study.replacement_values import replacement_values
from mechdiff.sweeps import activations, channel_moments
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.in_memory import sweep_in_memory


def activity(examined: DenoiserAndImages, timesteps: Sequence[int], root: PRNGKey) -> xr.Dataset:
    """`complexity.OF_COVARIANCE` of the activations of every site, dims `measure, site, t`.

    Raises:
      ConfigError: a sweep without reference images.
    """
    denoiser, images = examined.denoiser, examined.images
    check_references(len(images.reference))
    reference = images.reference_set(timesteps, keys.stream(root, "mean noise"))
    scored = images.scored_set(timesteps, keys.stream(root, "scored noise"))
    means = activations.activation_means(denoiser, reference)
    moments = channel_moments.channel_moments(denoiser, scored, means=means)
    values = {name: complexity.site_values(moments, name) for name in complexity.OF_COVARIANCE}
    cells = np.array([[values[name][site] for site in moments] for name in values])
    axes = {"measure": list(values), "site": list(moments), "t": np.asarray(timesteps)}
    return xr.Dataset({"value": (tuple(axes), cells)}, coords=axes)


def check_references(count: int) -> None:
    """Raises ConfigError if there are no reference images, which `activity` takes."""
    if not count:
        raise ConfigError("activity is measured around means of reference images; sweep.reference_images=0")


def control(
    examined: DenoiserAndImages, config: ExperimentConfig, noise: PRNGKey, folder: Path
) -> xr.Dataset:
    """The ablation sweep of the untrained network of the same training seed, at the sweep's timesteps."""
    fresh, timesteps = _fresh(examined, config)
    images = examined.images
    sweep = dataclasses.replace(config.sweep, images=len(images.scored))
    root = jax.random.key(config.seed)
    eval_set = images.swept_set(timesteps, noise)
    replacements = replacement_values(fresh, images, eval_set, root, sweep)
    results = ablation_sweep(fresh, eval_set, folder / "control", config=sweep, replacements=replacements)
    return results.assign_coords(images.labels)


def control_attention(examined: DenoiserAndImages, config: ExperimentConfig, noise: PRNGKey) -> xr.Dataset:
    """Attention statistics of the network of `control`, on the same images."""
    fresh, timesteps = _fresh(examined, config)
    results = activations.attention_stats(fresh, examined.images.swept_set(timesteps, noise))
    return results.assign_coords(examined.images.labels)


def random_sets(
    examined: DenoiserAndImages, config: ExperimentConfig, noise: PRNGKey, folder: Path | None = None
) -> xr.Dataset:
    """Pooled relative loss increase of random sets of as many channels as each component: a null by size.

    Every component is compared with sets of its class (`roles.matched_class`): channels of other branches and
    skips of its resolution. They are run on the scored images (of a nested sweep: those of its first
    timestep), at `study.timesteps` timesteps, as circuits are.

    Args:
      folder: as of `sweep_in_memory`.

    Returns:
      Dataset with `relative_increase`, pooled ΔL/L of each set in %, dims `ablation, component, set`.
    """
    denoiser, images, count = examined.denoiser, examined.images, config.study.random_sets
    timesteps = [int(t) for t in timesteps_by_log_snr(denoiser.schedule, config.study.timesteps)]
    sweep = dataclasses.replace(config.sweep, images=len(images.scored))
    eval_set = images.scored_set(timesteps, noise)
    values = replacement_values(denoiser, images, eval_set, jax.random.key(config.seed), sweep)
    chosen = denoiser.components()
    classes = [matched_class(component, denoiser.identity) for component in chosen]
    names, stacked = matched_sets(chosen, chosen, denoiser.identity, count, config.seed)
    increases = []
    for ablation in config.sweep.ablations:
        losses = sweep_in_memory(
            denoiser,
            eval_set,
            stacked,
            ablation=ablation,
            replacements=values.get(ablation),
            block=config.sweep.image_block,
            folder=folder,
        )
        loss = np.asarray(losses.loss, np.float64).mean(-1)
        clean = np.asarray(losses.clean_loss, np.float64).mean(-1)
        pooled = stats.percent_increase(loss, clean).mean(-1)
        of_class = {name: pooled[np.array(names) == name] for name in dict.fromkeys(names)}
        increases.append([of_class[name] for name in classes])
    return xr.Dataset(
        {"relative_increase": (("ablation", "component", "set"), np.array(increases))},
        coords={
            "ablation": list(config.sweep.ablations),
            "component": [component.name for component in chosen],
            "class": ("component", classes),
        },
    )


def _fresh(examined: DenoiserAndImages, config: ExperimentConfig) -> tuple[Examinable, np.ndarray]:
    """The untrained network and the timesteps it is examined at."""
    fresh = untrained.untrained(examined.denoiser, examined.trained.seed)
    return fresh, timesteps_by_log_snr(fresh.schedule, config.sweep.timesteps)
