"""Sampling sweeps: components x ablations x windows of t x samples, and the change of the final sample.

The clean and the changed arm begin with the same x_T and draw the same noise at every step. Before an
intervention's window opens, its trajectory is exactly the clean one. So the clean one is computed once, its
states are kept where windows open, and every changed trajectory begins there. With K components in W even
windows of S steps, this takes S + K S (W + 1) / 2 network calls per sample instead of K W S.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from mechdiff import stats
from mechdiff.core import devices, ranges
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey, PyTree, StepFn
from mechdiff.diffusion.samplers import TimestepSequence, check_clip, ddim_step
from mechdiff.diffusion.schedules import increasing_timesteps
from mechdiff.interventions.build import needs_replacements
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.stats import Interval
from mechdiff.storage import labelled
from mechdiff.sweeps import precision
from mechdiff.sweeps.execution import drawing, rollout
from mechdiff.sweeps.execution.provenance import store
from mechdiff.sweeps.execution.rollout import Rollout, Window
from mechdiff.sweeps.sampling_plan import SamplingPlan


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """The samples of a sampling sweep, with the same noise under every intervention.

    Attributes:
      timesteps: those visited, as for `samplers.sample`.
      count: number of samples, at least 2; sample i has the noise of index i, whatever the intervention.
      key: of all noise.
      condition: what each sample is conditioned on, leaves `(count, ...)`; None: nothing.
      step_fn: `ddim_step` or `ddpm_step`, or a partial of them.
      clip: of predicted images, as for `samplers.sample`; None: that of the network's config.

    Raises:
      ConfigError: fewer than two samples, or no whole number; a clip that `samplers.Sampler` refuses.

    Example:
      >>> import jax
      >>> SampleSet([5, 300, 900], 16, jax.random.key(0)).count
      16
    """

    timesteps: TimestepSequence
    count: int
    key: PRNGKey
    condition: PyTree = None
    step_fn: StepFn = ddim_step
    clip: float | None = None

    def __post_init__(self):
        ranges.whole("samples", self.count, 2, meaning="how many, for a distance between sets")
        if self.clip is not None:
            check_clip(self.clip)


SETTINGS = SweepConfig(ablations=("zero",), image_block=8)  # default of sampling sweeps


def sampling_sweep(
    denoiser: Examinable,
    sample_set: SampleSet,
    windows: Sequence[Window],
    folder: Path,
    *,
    config: SweepConfig = SETTINGS,
    replacements: PyTree = None,
    chosen: Sequence[Component] | None = None,
    facts: dict | None = None,
) -> xr.Dataset:
    """Samples with each component left out in each window, and measures how far each sample moves.

    Resumable, and computed by any number of processes, as `ablation.ablation_sweep` is.

    Args:
      windows: different half-open intervals of t; each must hold a visited timestep. See `even_windows`.
      config: `ablations`; samples at once (`image_block`); and interventions x samples at once on each device
        (`chunk`; 0: chosen by memory); `precision` of products. Nothing else of it is read.
      replacements: ablation -> site -> `(steps, *site)`, in the order of increasing t, for ablations other
        than `zero`.
      chosen: components; all of the network if None.
      facts: JSON-ready, kept in the result's attributes.

    Returns:
      Dataset with `distance` (root mean square change of the final sample's pixels, images being in [-1, 1]),
      dims `ablation, component, window, sample`, and `set_distance`, dims `ablation, component, window`:
      `sampling_plan.energy_distance` between the clean and the changed sets. Where `config.precision` acts,
      also `precision_error` (see `precision.largest_distance_error`), dims `ablation, component`, measured on
      a part of the samples and windows that was drawn in full precision too.

    Raises:
      ConfigError: an ablation without replacements, no window or one without timesteps, or timesteps that are
        not distinct integers in [0, T).

    Example:
      >>> import tempfile
      >>> import jax
      >>> from mechdiff.models.toy import toy_denoiser
      >>> sample_set = SampleSet([10, 50, 90], 2, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     swept = sampling_sweep(toy_denoiser(), sample_set, [(0, 60), (60, 100)], Path(folder))
      >>> moved = swept["distance"].sel(ablation="zero").mean("sample") > 0
      >>> dict(zip(moved["component"].values.tolist(), moved.values.tolist(), strict=True))
      {'large.mlp': [True, True], 'small.mlp': [True, True], 'idle.mlp': [False, False]}
    """
    chosen = chosen_components(denoiser, chosen)
    for ablation in config.ablations:
        if ablation != "zero" and ablation not in (replacements or {}):
            raise ConfigError(needs_replacements(ablation))
        if ablation != "zero" and not isinstance(replacements[ablation], dict):
            raise ConfigError(
                f"replacements of {ablation} ablation differ between images; sampling needs arrays, "
                "as for 'mean'"
            )
    ranges.distinct("windows", windows)
    sampler = _rollout(denoiser, sample_set, config.image_block)
    for window in windows:
        rollout.first_step_inside(sampler.timesteps, window)  # refuses a window without timesteps
    devices.warn_of(config.precision)
    plan = SamplingPlan(sampler, tuple(windows), sample_set.count, config, replacements or {}, chosen)
    with devices.multiplying(config.precision):
        path = store(folder, plan.key)
        labelled.create(path, plan.empty(facts or {}), plan.chunks())
        plan.run(path)
    if plan.reduced:
        plan.measure_precision(path)
    return labelled.read(path)


def mean_distance(swept: xr.Dataset, seed: int = 0) -> Interval:
    """Mean of the samples' distances with its 95 % interval over samples, `[ablation, component, window]`.

    Its ends lie at least as far out as Student's (`stats.bootstrap`), as those of effects do: of 2 samples,
    lognormal distances with log-sd .7, .92 cover instead of .48, of 4 .90 (.84).

    Args:
      swept: of `sampling_sweep`. Where its precision was measured, intervals are wider by its error at both
        ends, and a mean that is not above it is NaN.
      seed: of the bootstrap.
    """
    distance = swept["distance"].transpose("ablation", "component", "window", "sample").values
    distance = distance.astype(np.float64)
    weights = stats.bootstrap_weights(distance.shape[-1], seed=seed)
    mean = stats.bootstrap(lambda drawn: distance @ drawn.T, weights, student=True)
    error = precision.error_of(swept)[..., None]
    estimate = np.where(precision.above_error(swept), mean.estimate, np.nan)
    low = np.maximum(mean.low - error, 0)  # no distance is negative
    return dataclasses.replace(mean, estimate=estimate, low=low, high=mean.high + error)


def _rollout(denoiser: Examinable, sample_set: SampleSet, block: int) -> Rollout:
    down = increasing_timesteps(np.sort(sample_set.timesteps), denoiser.schedule.steps)[::-1].copy()
    clip = drawing.sample_clip(denoiser) if sample_set.clip is None else float(sample_set.clip)
    block = min(block, sample_set.count)
    return Rollout(denoiser, down, sample_set.key, sample_set.step_fn, clip, block, sample_set.condition)
