"""Calibration of what is said of circuits and pairs beside their main tests: faithfulness on other people,
completeness, CMD, and strengths of pairs."""

import functools

import numpy as np
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.circuits.faithfulness import faithfulness, faithfulness_match
from mechdiff.circuits.pruning import Set, select
from mechdiff.circuits.strengths import strength_interval
from mechdiff.stats import Interval, Units
from mechdiff.validation.checks import CONFIDENCE, Check, covers, errs, finds, inside, replacing

COMPONENTS, PEOPLE, OF_EACH = 40, 16, 4  # of circuits that are found on half of the images
BETWEEN = 2 / 3  # of the variance of effects, between people
TAU = 0.9  # faithfulness that they must reach
KNOCKOUTS, MISSED = 10, 0.1  # of a circuit, and the faithfulness that one lacks which is not complete
SHARES = np.arange(0, 1.01, 0.1)  # of components, for a curve


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated circuits or pairs."""
    rngs = iter(rng.spawn(4))
    return [
        *_halves(next(rngs), repeats),
        *_completeness(next(rngs), repeats),
        *_distance(next(rngs), repeats),
        *_strengths(next(rngs), repeats),
    ]


def _halves(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Faithfulness of a circuit that was found on some people, on others; before, on other images of the
    same."""
    person = np.tile(np.arange(PEOPLE), OF_EACH)
    apart, covered, before = np.argsort(person, kind="stable"), [], []
    for _ in range(repeats):
        size = np.exp(1.2 * rng.normal(size=COMPONENTS))
        size /= size.sum()
        logs = np.sqrt(BETWEEN) * rng.normal(size=(COMPONENTS, PEOPLE))[:, person]
        logs += np.sqrt(1 - BETWEEN) * rng.normal(size=(COMPONENTS, len(person)))
        cost = 4 * size[:, None] * np.exp(logs - 0.5)
        for order, outcomes in ((apart, covered), (rng.permutation(len(person)), before)):
            half = len(order) // 2
            interval, truth = _scored(cost, size, person, order[:half], order[half:])
            outcomes.append(bool(inside(interval, truth)))
    name = f"faithfulness of a circuit of {PEOPLE // 2} people, on {PEOPLE // 2} others"
    return [replacing(covers(name, np.array(covered)), np.array(before))]


def _scored(
    cost: Float[np.ndarray, "component image"], size: np.ndarray, person: np.ndarray, find, score
) -> tuple[Interval, float]:
    """Interval of the faithfulness, on the images `score`, of the circuit found on `find`, and its truth."""

    def f(members: Bool[np.ndarray, "circuit component"], images: np.ndarray, weights: np.ndarray):
        of_images = cost[:, images]
        nothing, whole = of_images.sum(axis=0), np.zeros(len(images))
        return faithfulness((1.0 - members) @ of_images, nothing, whole, weights)

    def match(members: np.ndarray) -> np.ndarray:
        return faithfulness_match(f(members, find, stats.equal_weights(len(find))))[:, 0]

    members: Set = select(match, cost[:, find].mean(axis=1), TAU).members
    units = stats.units_from(person[score], len(score))
    return stats.jackknife_interval(lambda w: f(members[None], score, w)[0], units), float(
        size[members].sum()
    )


def _completeness(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Gaps between a circuit and the network under knock-outs; before, of their mean size by the jackknife
    alone."""

    def above(truth: float, images: int) -> Bool[np.ndarray, "repeat 2"]:
        gaps = truth + 0.1 * rng.normal(size=(repeats, KNOCKOUTS, images))
        units, results = Units(np.arange(images), images, False), []
        for values in gaps:
            of = functools.partial(_means, values)
            new = stats.size_interval(of, lambda sizes: sizes.mean(axis=0), units)
            old = stats.jackknife_interval(lambda w, of=of: np.abs(of(w)).mean(axis=0), units)
            results.append([bool(new.low > 0), bool(old.low > 0)])
        return np.array(results)

    results, name = [], "completeness, {} images: "
    for images in (8, 64):
        nothing = above(0.0, images)
        null = errs(name.format(images) + "a complete circuit is called not so", nothing[:, 0])
        results.append(replacing(null, nothing[:, 1]))
    results.append(
        finds(name.format(8) + f"one that lacks {MISSED:g} is called so", above(MISSED, 8)[:, 0], 0.8)
    )
    return results


def _means(values: Float[np.ndarray, "*value image"], weights: np.ndarray) -> np.ndarray:
    return values @ weights.T


def _distance(rng: np.random.Generator, repeats: int, images: int = 16) -> list[Check]:
    """CMD of circuits whose larger ones do what the network does; before, by the jackknife alone."""
    missed = np.maximum(0.6 - SHARES, 0)[:, None]
    truth, covered, before = np.trapezoid(missed[:, 0], SHARES), [], []
    units = Units(np.arange(images), images, False)
    for _ in range(repeats):
        noise = 0.3 * rng.normal(size=(len(SHARES), images)) * (SHARES[:, None] % 1 > 0)
        of = functools.partial(_means, missed + noise)
        area = functools.partial(np.trapezoid, x=SHARES, axis=0)
        covered.append(bool(inside(stats.size_interval(of, area, units), truth)))
        old = stats.jackknife_interval(lambda w, of=of, area=area: area(np.abs(of(w))), units)
        before.append(bool(inside(old, truth)))
    return [replacing(covers(f"CMD, {images} images", np.array(covered)), np.array(before))]


def _strengths(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Strengths of a backup that repairs three quarters, and of two components that do nothing without each
    other; costs are lognormal over images, log-sd .5."""
    laws = {"three quarters are repaired": ((5, 0, 15), 0.75), "common use": ((6, 2, -2), 1.0)}
    results = []
    for images in (8, 16):
        units = Units(np.arange(images), images, False)
        for name, (cost, truth) in laws.items():
            scatter = np.exp(0.5 * rng.normal(size=(3, repeats, images)) - 0.125)
            single = np.reshape(cost, (3, 1, 1)) * scatter
            costs = np.stack([single[0], single[1], single.sum(axis=0)])
            interval = strength_interval(functools.partial(_means, costs), units, CONFIDENCE)
            results.append(covers(f"strength of a pair, {images} images: {name}", inside(interval, truth)))
    return results
