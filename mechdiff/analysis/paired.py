"""Effects pooled over timesteps, each with a test; and two denoisers compared on the same images and noise.

The unit is the image (or the person, where known): its pooled relative loss increase under each ablation, and
the difference of these between two denoisers. Sign flips of units test them; the training seeds are fixed, so
that nothing here speaks of other trainings.

Between two denoisers both clean losses are as uncertain as those under ablation. So what is flipped is what
each unit would add to the change if there were none: its losses beside those of a relative loss increase that
both denoisers share (score contributions, Hemerik, Goeman & Finos 2020, JRSS B 82:841). Until 2026-11-30 the
increase was each denoiser's own, whose error goes with skewed clean losses: of 8 images at log-sd 1, p was at
most .05 in .16 of comparisons without any change (.12 of 16, .10 of 32); now in .05 of each. Where ablation
adds to losses what does not go with the clean ones, it is in .04 to .07 (log-sd up to 1), .05 to .10 (1.3).
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects, precision
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Interval

Losses = Float[np.ndarray, "*#component t image"]
PAIRED_BY = ("images_sha256", "noise_seed")  # attributes that must agree where both sweeps have them


@dataclass(frozen=True)
class PairedDifference:
    """Change of pooled relative loss increases from one denoiser to another, in percentage points.

    Attributes:
      components: that both have, in the order of the first.
      before, after: pooled relative loss increases, %, `[component]`.
      difference: after - before.
      p: two-sided sign-flip p values of the differences, Holm-adjusted over components; 1 where the error of
        reduced precision, by which intervals are wider, may be all of a difference.
      flipped: units whose signs p flips: images of all timesteps together, or people where they are known.
      effective: what the n images or people count as, see `stats.Units.effective`.
      n: images, or people where they are known.
    """

    components: tuple[str, ...]
    before: Float[np.ndarray, " component"]
    after: Float[np.ndarray, " component"]
    difference: Interval
    p: Float[np.ndarray, " component"]
    flipped: int
    effective: float

    @property
    def n(self) -> int:
        """Units: images, or people where they are known."""
        return self.difference.n

    @property
    def least_p(self) -> float:
        """The least p that there can be: two of all flips of the units' signs are as extreme as can be, and
        Holm counts every component."""
        all_flips = 2.0 ** min(self.flipped, 64)
        flips = min(all_flips, stats.FLIPS + 1)
        return min(1.0, len(self.components) * (2 if flips == all_flips else 1) / flips)


def by_unit(
    sweep: xr.Dataset, cells: Float[np.ndarray, "component t image"]
) -> Float[np.ndarray, "component unit"]:
    """Means over timesteps of each image's `cells`, or those of all timesteps where these have different
    images; sums over each person's images where people are known."""
    values = cells if effects.nested(sweep) else cells.mean(axis=1, keepdims=True)
    units = stats.units_of(sweep)
    sums = units.sums(values)
    return sums.sum(axis=1) if units.clustered else sums.reshape(len(sums), -1)


def pooled_p(sweep: xr.Dataset, ablation: str, seed: int = 0) -> Float[np.ndarray, " component"]:
    """Two-sided sign-flip p values of pooled relative loss increases, max-T over all components."""
    cells = effects.increase_by_image(*effects.losses(sweep, ablation), nested=True)
    return stats.max_t(by_unit(sweep, cells), seed=seed)


def contributions_to_change(
    before: tuple[Losses, Losses], after: tuple[Losses, Losses], pooled: bool
) -> Float[np.ndarray, "*component t image"]:
    """What each image adds to the change of relative loss increases, in points, under the null that there is
    none; the mean over images is the change.

    Args:
      before, after: clean losses, and those under an ablation; see `effects.losses`.
      pooled: whether the change is that of the mean over timesteps, or of each timestep.
    """
    increases = [(loss - clean).mean(axis=-1) / clean.mean(axis=-1) for clean, loss in (before, after)]
    half = 50 * (increases[1] - increases[0])[..., None]
    half = half.mean(axis=-2, keepdims=True) if pooled else half
    # Half of the change is added to one side and taken from the other: the nearest effects without a change.
    first = stats.ratio_influence(*before, 100 * increases[0][..., None] + half)
    return stats.ratio_influence(*after, 100 * increases[1][..., None] - half) - first


def paired_difference(
    before: xr.Dataset, after: xr.Dataset, ablation: str, repeats: int = 2000, seed: int = 0
) -> PairedDifference:
    """How the effect of each component's ablation differs between two denoisers, image by image.

    Args:
      before, after: sweeps of equal timesteps over equal images and noise.
      repeats, seed: of the bootstrap; the same resamples of images serve both sides.

    Raises:
      ConfigError: sweeps of other timesteps, images or noise; no component in common.
    """
    _check_paired(before, after)
    names_after = set(after["component"].values.tolist())
    names = [name for name in before["component"].values.tolist() if name in names_after]
    if not names:
        raise ConfigError("the two denoisers have no component in common; their effects can't be compared")
    sides = [sweep.sel(component=names) for sweep in (before, after)]
    losses = [effects.losses(side, ablation) for side in sides]

    def pooled(side: int, weights: np.ndarray) -> np.ndarray:
        return effects.pooled_relative_increase(*losses[side], weights)

    units = stats.units_of(before)
    interval = stats.bootstrap_units(
        lambda weights: pooled(1, weights) - pooled(0, weights),
        units,
        repeats=repeats,
        seed=seed,
        student=True,
    )
    differences = by_unit(before, contributions_to_change(*losses, pooled=True))
    error = errors(*sides, ablation)
    interval = precision.widened(interval, error)
    p = np.where(precision.lost(interval, error), 1.0, stats.permutation_test(differences, seed=seed))
    before_even, after_even = (pooled(side, units.even())[:, 0] for side in range(2))
    return PairedDifference(
        components=tuple(names),
        before=before_even,
        after=after_even,
        difference=interval,
        p=stats.holm(p),
        flipped=differences.shape[-1],
        effective=units.effective,
    )


def errors(before: xr.Dataset, after: xr.Dataset, ablation: str) -> Float[np.ndarray, " component"]:
    """Error of the change of relative loss increases by reduced precision, in points: that of both sides."""
    return precision.relative_error(before, ablation) + precision.relative_error(after, ablation)


def _check_paired(before: xr.Dataset, after: xr.Dataset) -> None:
    sizes = [(side["t"].values.tolist(), side.sizes["image"]) for side in (before, after)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"sweeps of timesteps and images {sizes[0]} and {sizes[1]}: they are paired image by image, so "
            "sweep both on the same"
        )
    for name in PAIRED_BY:
        values = [side.attrs.get(name) for side in (before, after)]
        if None not in values and values[0] != values[1]:
            raise ConfigError(f"sweeps with {name} {values[0]} and {values[1]} can't be paired; use the same")
