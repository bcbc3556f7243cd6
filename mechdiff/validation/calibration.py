"""Empirical calibration of every test and interval of the report, on simulated data whose truth is known.

Under true nulls p values must be uniform (Kolmogorov-Smirnov); intervals must reach their nominal coverage;
corrections for multiple tests must hold their error rate on mixtures of nulls and effects. Data are simulated
losses of images: positive, skewed, correlated within an image across components and timesteps, as in a sweep.
"""

import functools
from pathlib import Path

import numpy as np
from scipy import special

from mechdiff import stats
from mechdiff.analysis import effects, network_divergence
from mechdiff.analysis.roles.matching import agreement
from mechdiff.core.errors import ConfigError
from mechdiff.stats.small_samples import over_seeds
from mechdiff.validation import (
    analysis_calibration,
    attacks,
    circuit_calibration,
    further_calibration,
    image_calibration,
    rule_calibration,
    scope,
    sweep_calibration,
)
from mechdiff.validation.checks import (
    ALPHA,
    CONFIDENCE,
    Check,
    covers,
    inside,
    mean_error,
    replacing,
    table,
    uniform,
)
from mechdiff.validation.saved_checks import kept

__all__ = ["Check", "calibrate", "table"]

GRID = (4, 3)  # components x timesteps
FLIPS = 999
RESAMPLES = 500


def calibrate(repeats: int = 400, images: int = 32, seed: int = 0, folder: Path | None = None) -> list[Check]:
    """All checks, each over `repeats` independent data sets of `images` images.

    Args:
      folder: finished groups of checks are kept here, so that an interrupted run can go on; None: nowhere.

    Raises:
      ConfigError: fewer than 50 repetitions.
    """
    if repeats < 50:
        raise ConfigError(f"repeats={repeats} show nothing; at least 50, better 400")
    rngs = np.random.default_rng(seed).spawn(9)
    groups = {
        "basics": functools.partial(basics, images=images),
        "rules": rule_calibration.checks,
        "images": image_calibration.checks,
        "further": further_calibration.checks,
        "attacks": attacks.checks,
        "scope": scope.checks,
        "sweeps": sweep_calibration.checks,
        "analyses": analysis_calibration.checks,
        "circuits": circuit_calibration.checks,
    }
    checks = []
    for (name, group), rng in zip(groups.items(), rngs, strict=True):
        run = functools.partial(group, rng, repeats)
        checks += kept(folder, name, run, repeats=repeats, images=images, seed=seed)
    return checks


def basics(rng: np.random.Generator, repeats: int, images: int) -> list[Check]:
    """Checks of single tests, intervals and corrections."""
    rngs = iter(rng.spawn(6))
    return [
        *_tests(next(rngs), repeats, images),
        *_intervals(next(rngs), repeats, images),
        *_sweeps(next(rngs), repeats, images),
        *_families(next(rngs), repeats),
        *_seeds(next(rngs), repeats),
        *_crossed(next(rngs), repeats, images),
    ]


def losses(rng: np.random.Generator, shape: tuple[int, ...], images: int, spread: float = 0.5) -> np.ndarray:
    """Losses `[*shape, images]` of mean 1: lognormal, half of their log-variance shared within an image."""
    shared = rng.normal(size=(*shape[:-2], *(1,) * min(2, len(shape)), images))
    logs = np.sqrt(0.5) * (shared + rng.normal(size=(*shape, images)))
    return np.exp(spread * logs - spread**2 / 2)


def shuffled_arms(rng: np.random.Generator, shape: tuple[int, ...], images: int) -> np.ndarray:
    """Differences of two arms with exchangeable losses: a true null, `[*shape, images]`."""
    return losses(rng, shape, images) - losses(rng, shape, images)


def _tests(rng: np.random.Generator, repeats: int, images: int) -> list[Check]:
    nothing = shuffled_arms(rng, (repeats, 1, 1), images)[:, 0, 0]
    p = {"permutation test, label-shuffled arms": stats.permutation_test(nothing, FLIPS)}
    noise = rng.normal(size=(repeats, images)) - rng.normal(size=(repeats, images))
    p["permutation test, two draws of noise"] = stats.permutation_test(noise, FLIPS)
    halves = rng.permuted(losses(rng, (repeats, 1, 1), 2 * images)[:, 0, 0], axis=1)
    p["permutation test, two random halves"] = stats.permutation_test(
        halves[:, :images] - halves[:, images:], FLIPS
    )
    grids = shuffled_arms(rng, (repeats, *GRID), images)
    p["max-T, smallest of a grid"] = np.array(
        [stats.max_t(grid, FLIPS, i).min() for i, grid in enumerate(grids)]
    )
    p["equivalence test at its margin"] = stats.equivalence_test(1 + rng.normal(size=(repeats, images)), 1.0)
    return [uniform(name, values) for name, values in p.items()]


def _intervals(rng: np.random.Generator, repeats: int, images: int) -> list[Check]:
    mean_one = losses(rng, (repeats, 1, 1), images)[:, 0, 0]
    normal = rng.normal(1, 1, (repeats, images))
    changed = mean_one * rng.gamma(4, 1.2 / 4, mean_one.shape)  # 20 % worse
    seeds = rng.normal(size=(repeats, 8, 1)) + rng.normal(size=(repeats, 8, images)) + 1
    of_mean = functools.partial(stats.bootstrap_mean, mean_one, CONFIDENCE, RESAMPLES)
    of_ratio = functools.partial(stats.ratio_effect, mean_one, changed, CONFIDENCE, RESAMPLES)
    intervals = {
        "Student, normal": (stats.student_mean(normal, CONFIDENCE), 1),
        "Student, skewed losses": (stats.student_mean(mean_one, CONFIDENCE), 1),
        "percentile bootstrap, skewed losses": (
            stats.bootstrap_mean(mean_one, CONFIDENCE, RESAMPLES, method="percentile"),
            1,
        ),
        "BCa bootstrap, skewed losses": (of_mean(), 1),
        "BCa, ratio of paired losses": (of_ratio(), 20),
        "hierarchical bootstrap, 8 seeds": (stats.hierarchical_bootstrap(seeds, CONFIDENCE, RESAMPLES), 1),
        "Student of 8 seeds' means": (stats.student_mean(seeds.mean(-1), CONFIDENCE), 1),
    }
    checks = {name: covers(name, inside(i, truth)) for name, (i, truth) in intervals.items()}
    resamples_alone = {"BCa bootstrap, skewed losses": of_mean, "BCa, ratio of paired losses": of_ratio}
    for name, interval in resamples_alone.items():
        checks[name] = replacing(checks[name], inside(interval(student=False), intervals[name][1]))
    return list(checks.values())


def _sweeps(rng: np.random.Generator, repeats: int, images: int) -> list[Check]:
    """Pooled relative loss increase as in `effects.measure`; a confidence sequence at interim analyses."""
    covered = []
    for number in range(repeats):
        clean = losses(rng, GRID[1:], images)
        loss = clean * rng.gamma(4, 1.2 / 4, (*GRID, images))
        weights = stats.bootstrap_weights(images, RESAMPLES, number)
        pooled = functools.partial(effects.pooled_relative_increase, clean, loss)
        increase = stats.bootstrap(pooled, weights, CONFIDENCE, student=True)
        covered.append((increase.low[0] <= 20) & (increase.high[0] >= 20))
    looks = np.arange(images, 8 * images)
    values = losses(rng, (repeats, 1, 1), 8 * images)[:, 0, 0]
    n = np.arange(1, 8 * images + 1)
    mean = values.cumsum(1) / n
    deviation = np.sqrt(np.maximum((values**2).cumsum(1) / n - mean**2, 0) * n / np.maximum(n - 1, 1))
    width = stats.confidence_sequence(looks, deviation[:, looks - 1], CONFIDENCE)
    always = (np.abs(mean[:, looks - 1] - 1) <= width).all(axis=1)
    return [
        covers("BCa, pooled loss increase of a sweep", np.array(covered)),
        covers(f"confidence sequence, at all of {len(looks)} looks", always),
    ]


def _seeds(rng: np.random.Generator, repeats: int, seeds: int = 5) -> list[Check]:
    """Tests over networks under the null that data sets don't differ, as claims use them."""
    networks = f"2 x {seeds} networks"
    tests = (
        f"Student over {seeds} pairs of seeds",
        f"relabelling of {networks}, largest over timesteps",
        f"relabelling of {networks}, mean over timesteps",
        "roles of matched heads, shuffled in layers",
    )
    p = {name: [] for name in tests}
    for number in range(repeats):
        ratio, largest, pooled, matched = p.values()
        ratio.append(over_seeds(rng.normal(size=seeds))[2])
        heads = 2 + 0.1 * rng.normal(size=(2, seeds, 6, 1)) + 0.05 * rng.normal(size=(2, seeds, 6, 4))
        compared = network_divergence.compare(heads[0], heads[1], ["a"] * 3 + ["b"] * 3)
        largest.append(compared.p_by_t.min())
        pooled.append(compared.p)
        profiles, selectivity = rng.normal(size=(2, 3, 6, 4))
        layers, roles = ["a"] * 3 + ["b"] * 3, [["x"] * 6] * 3
        matched.append(agreement(list(profiles), list(selectivity), roles, layers, 199, number).p_profiles)
    return [uniform(test, np.array(values)) for test, values in p.items()]


def _crossed(rng: np.random.Generator, repeats: int, images: int, seeds: int = 5) -> list[Check]:
    """Intervals over networks that were measured on the same images, and so share their sampling error."""
    weights, checks = stats.bootstrap_weights(images, RESAMPLES), []
    for name, spread in (("seeds", 1.0), ("images", np.sqrt(images) * 0.5)):
        shared = spread * rng.normal(size=(repeats, 1, images))
        cells = rng.normal(size=(repeats, seeds, 1)) + shared + rng.normal(size=(repeats, seeds, images))
        results = [over_seeds(values.mean(-1), values @ weights.T, images) for values in cells]
        covered = np.array([low <= 0 <= high for _, (low, high), _ in results])
        checks.append(covers(f"{seeds} seeds on the same images, more by {name}", covered))
    return checks


def _families(
    rng: np.random.Generator, repeats: int, tests: int = 40, effects_among: int = 10
) -> list[Check]:
    """Corrections on mixtures of z tests, a quarter of them with true effects of 3 standard errors."""
    z = rng.normal(size=(repeats, tests)) + np.where(np.arange(tests) < effects_among, 3.0, 0.0)
    p = np.clip(2 * special.ndtr(-np.abs(z)), 0, 1)  # two-sided
    checks = []
    for name, correct, rate in (
        ("Holm, any false rejection", stats.holm, lambda wrong, right: wrong > 0),
        ("Benjamini-Hochberg, false share", stats.benjamini_hochberg, lambda w, r: w / np.maximum(w + r, 1)),
    ):
        rejected = np.stack([correct(row) <= ALPHA for row in p])
        false = rejected[:, effects_among:].sum(1)
        checks.append(
            mean_error(name, np.asarray(rate(false, rejected[:, :effects_among].sum(1)), np.float64))
        )
    return checks
