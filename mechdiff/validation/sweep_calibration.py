"""Calibration of the intervals of one sweep's tables, besides those of pooled loss increases of mildly skewed
images: strong skew, shares, quantiles and spread over images, classes, distances of samples, interchange."""

import functools
from collections.abc import Callable

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy import special

from mechdiff import stats
from mechdiff.analysis import class_effects, effects, variation
from mechdiff.stats import Units
from mechdiff.sweeps import interchange, sampling
from mechdiff.validation.checks import CONFIDENCE, Check, covers, errs, finds, inside, replacing

IMAGES, TIMESTEPS, RESAMPLES = 32, 4, 300
PEOPLE, OF_EACH = 12, 7  # a third of the variance is between people
POOLED = {  # laws of the loss increase over images, mean 1
    "lognormal, log-sd 1": lambda rng, images: np.exp(rng.normal(size=images) - 0.5),
    "t(3)": lambda rng, images: 1 + rng.standard_t(3, size=images),
}
MANY = 100_000  # images that a true share of the top tenth is of


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated sweeps."""
    rngs = iter(rng.spawn(8))
    return [
        *_pooled(next(rngs), repeats),
        *_shares_and_quantiles(next(rngs), repeats),
        *_variation(next(rngs), repeats),
        *_effective_number(next(rngs), repeats),
        *_classes(next(rngs), repeats),
        *_distances(next(rngs), repeats),
        *_interchange(next(rngs), repeats),
        *_rms(next(rngs), repeats),
    ]


def _pooled(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Loss increases of 20 %, strongly skewed or heavy-tailed over images."""

    def covered(law: Callable[..., np.ndarray], images: int, number: int) -> bool:
        clean = np.exp(0.4 * rng.normal(size=images) + 0.3 * rng.normal(size=(TIMESTEPS, images)) - 0.125)
        loss = clean[None] * (1 + 0.2 * law(rng, images))
        pooled = functools.partial(effects.pooled_relative_increase, clean, loss)
        units = Units(np.arange(images), images, False)
        interval = stats.bootstrap_units(pooled, units, repeats=RESAMPLES, seed=number, student=True)
        return bool(inside(interval, 20.0)[0])

    return [
        covers(
            f"BCa, pooled loss increase, {images} images: {name}",
            np.array([covered(law, images, i) for i in range(repeats)]),
        )
        for name, law in POOLED.items()
        for images in (16, 84)
    ]


def _shares_and_quantiles(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Of normal numbers: their quantiles, and the share that is above one of these."""
    people = Units(np.repeat(np.arange(PEOPLE), OF_EACH), PEOPLE, True)
    images = Units(np.arange(PEOPLE * OF_EACH), PEOPLE * OF_EACH, False)
    own, shared = (rng.normal(size=(repeats, 1, n)) for n in (images.count, PEOPLE))
    of_people = np.sqrt(2 / 3) * own + np.sqrt(1 / 3) * shared[..., people.member]
    truth, results = special.ndtri(effects.QUANTILES), []
    few = Units(np.arange(8), 8, False)
    name = f"{PEOPLE} people, {OF_EACH} images each"
    for what, values, units in (
        ("8 images", own[..., :8], few),
        ("84 images", own, images),
        (name, of_people, people),
    ):
        interval = stats.share_interval(values > special.ndtri(0.1), units, CONFIDENCE)
        results.append(covers(f"share of images hurt, .9 of {what}", inside(interval, 0.9)))
    for what, values, units in (("84 images", own, images), (name, of_people, people)):
        covered = inside(stats.quantile_interval(values, units, effects.QUANTILES, CONFIDENCE), truth)
        results += [
            covers(f"quantile over {what}: {share:g}", covered[:, i])
            for i, share in enumerate(effects.QUANTILES)
        ]
    return results


def _sweep(
    increase: Float[np.ndarray, "component t image"], classes: Int[np.ndarray, " image"]
) -> xr.Dataset:
    """A sweep without noise of clean losses, from increases in %."""
    dims = ("ablation", "component", "t", "image")
    variables = {
        "loss": (dims, 1 + increase[None] / 100),
        "clean_loss": (dims[2:], np.ones(increase.shape[1:])),
    }
    names = [f"component{i}" for i in range(len(increase))]
    coords = {"ablation": ["zero"], "component": names, class_effects.CLASS: ("image", classes)}
    return xr.Dataset(variables, coords)


def _variation(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Of contributions that scatter by a normal law as much as their mean; noise at each timestep alone."""
    own = 4 * (1 + rng.normal(size=(repeats, 1, IMAGES)))
    noise = rng.normal(size=(repeats, TIMESTEPS, IMAGES))
    increase = own + noise - noise.mean(axis=1, keepdims=True)
    table = variation.variation(_sweep(increase, np.zeros(IMAGES, int)), "zero")
    many = 4 * (1 + rng.normal(size=(1, MANY)))
    truth = {
        "over_timesteps": 4.0,
        "over_images": np.sqrt(32),
        "top_tenth": 100 * variation.top_share(many, variation.TENTH)[0],
    }
    checks = []
    for name, value in truth.items():
        low, high = (table[end].to_numpy() for end in variation.INTERVALS[name])
        checks.append(covers(f"variation, {IMAGES} images: {name}", (low <= value) & (value <= high)))
    return checks


def _effective_number(rng: np.random.Generator, repeats: int, components: int = 28) -> list[Check]:
    """Of 28 components of unequal effects, each of which scatters over images by half of itself; and of four
    among as many, where the others have none, but scatter by 5 %. Before, by resamples alone."""
    unequal = 0.05 * np.exp(np.linspace(-2, 2, components))
    four = np.where(np.arange(components) < 4, np.resize((0.4, 0.2, 0.1, 0.1), components), 0.0)
    units, results = Units(np.arange(IMAGES), IMAGES, False), []
    for what, size, noise in (("", unequal, 0.0), (": four have an effect", four, 0.05)):
        truth, covered, before = stats.effective_number(size[:, None])[0], [], []
        for number in range(repeats):
            clean = np.exp(0.3 * rng.normal(size=(TIMESTEPS, IMAGES)))
            scatter = 1 + 0.5 * rng.normal(size=(components, 1, IMAGES))
            added = size[:, None, None] * scatter
            if noise:
                added = added + noise * rng.normal(size=scatter.shape)
            increase = functools.partial(effects.pooled_relative_increase, clean, clean * (1 + added))
            drawn = {"repeats": RESAMPLES, "seed": number}
            covered.append(bool(inside(stats.effective_interval(increase, units, **drawn), truth)))
            old = stats.bootstrap_units(lambda w, of=increase: stats.effective_number(of(w)), units, **drawn)
            before.append(bool(inside(old, truth)))
        check = covers(f"effective number of components, {IMAGES} images{what}", np.array(covered))
        results.append(replacing(check, np.array(before)))
    return results


def _classes(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Pooled loss increase within a class of 5, and of 8, of 32 images; lognormal over images, log-sd .5."""
    classes = np.where(np.arange(IMAGES) < 5, 0, np.where(np.arange(IMAGES) < 13, 1, 2))
    increase = 20 * np.exp(0.5 * rng.normal(size=(repeats, 1, IMAGES)) - 0.125)
    result = class_effects.class_effects(_sweep(increase, classes), "zero", labels=[0, 1], repeats=RESAMPLES)
    covered = ((result["low"] <= 20) & (result["high"] >= 20)).values
    return [covers(f"class of {n} of {IMAGES} images", covered[:, i]) for i, n in enumerate((5, 8))]


def _distances(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Mean distance of samples, lognormal with log-sd .5; before, by resamples alone."""
    results = []
    for samples in (4, 16):
        distance = np.exp(0.5 * rng.normal(size=(1, repeats, 1, samples)) - 0.125)
        swept = xr.Dataset({"distance": (("ablation", "component", "window", "sample"), distance)})
        now, before = sampling.mean_distance(swept), stats.bootstrap_mean(distance, student=False)
        check = covers(f"mean distance of {samples} samples", inside(now, 1.0).ravel())
        results.append(replacing(check, inside(before, 1.0).ravel()))
    return results


def _interchange(rng: np.random.Generator, repeats: int, pairs: int = 16) -> list[Check]:
    """Fraction of a factor that a component carries, .3 on average over pairs that show it unequally; before,
    by percentiles of resamples alone."""
    distance = np.exp(rng.normal(size=(repeats, 1, pairs)))
    along = distance * (0.3 + 0.3 * rng.normal(size=distance.shape))
    dims = ("factor", "component", "t", "image")
    measured = xr.Dataset({"along": (dims, along[:, None]), "distance": (("factor", "t", "image"), distance)})
    _, share = interchange.transfer_by_component(measured, repeats=RESAMPLES)
    weights = stats.bootstrap_weights(pairs, RESAMPLES)
    before = stats.bootstrap(lambda w: (along @ w.T) / (distance @ w.T), weights, CONFIDENCE, "percentile")
    check = covers(f"interchange, {pairs} pairs: share of a factor", inside(share, 0.3).ravel())
    return [replacing(check, inside(before, 0.3).ravel())]


def _rms(rng: np.random.Generator, repeats: int, timesteps: int = 8, images: int = 16) -> list[Check]:
    """Root mean square over 8 timesteps of effects that scatter over images by 4 %, at each alone; before, by
    resamples alone."""
    units, results = Units(np.arange(images), images, False), []
    name = f"rms over timesteps, {images} images"
    for truth in (0.0, 1.0, 4.0):
        increase = truth + 4 * rng.normal(size=(repeats, timesteps, images))
        now = stats.rms_interval(lambda w, of=increase: of @ w.T, units, repeats=RESAMPLES)
        before = stats.bootstrap_units(
            lambda w, of=increase: np.sqrt(((of @ w.T) ** 2).mean(axis=1)), units, repeats=RESAMPLES
        )
        check = covers(f"{name}: of {truth:g} %", inside(now, truth))
        results.append(replacing(check, inside(before, truth)))
        if truth == 0:
            results.append(replacing(errs(f"{name}: no effect is called one", now.low > 0), before.low > 0))
    results.append(finds(f"{name}: of 4 % is called an effect", now.low > 0, 0.8))
    return results
