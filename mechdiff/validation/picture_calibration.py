"""Calibration of intervals over images: sequential sweeps with optional stopping, faithfulness from few
images, and images clustered by person."""

import numpy as np
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.circuits.faithfulness import faithfulness
from mechdiff.sweeps import sequential
from mechdiff.validation.checks import LEVEL, Check, covers, errs

COMPONENTS, TIMESTEPS, MOST, WIDTH = 56, 4, 256, 0.5  # of a sequential sweep; WIDTH in %
LAWS = {  # distributions of relative loss increase over images, mean 1
    "normal": lambda rng, shape: 1 + rng.normal(size=shape),
    "gamma, cv .7": lambda rng, shape: rng.gamma(1 / 0.49, 0.49, shape),
    "lognormal, log-sd .5": lambda rng, shape: np.exp(0.5 * rng.normal(size=shape) - 0.125),
    "lognormal, log-sd .7": lambda rng, shape: np.exp(0.7 * rng.normal(size=shape) - 0.245),
    "lognormal, log-sd 1": lambda rng, shape: np.exp(rng.normal(size=shape) - 0.5),
}
COVERED = {
    "lognormal, log-sd .7": 0.9,
    "lognormal, log-sd 1": 0.75,
}  # joint coverage promised; for other laws 0.95


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated sweeps."""
    rngs = iter(rng.spawn(3))
    return [
        *_sequential(next(rngs), repeats),
        *_faithfulness(next(rngs), repeats),
        *_people(next(rngs), repeats),
    ]


def _sequential(rng: np.random.Generator, repeats: int) -> list[Check]:
    results = []
    for name, law in LAWS.items():
        runs = np.array([stopped(rng, law) for _ in range(repeats)])
        results.append(
            covers(f"sequential, all of {COMPONENTS} sizes: {name}", runs[:, 0], COVERED.get(name, LEVEL))
        )
        results.append(errs(f"sequential, any wrong sign: {name}", runs[:, 1]))
    return results


def stopped(rng: np.random.Generator, law, block: int = 16) -> tuple[bool, bool]:
    """One sequential sweep by the rule of `sweeps.sequential`: whether all intervals cover the truth when
    it stops, and whether any lies on the wrong side of 0."""
    size = 0.03 * rng.lognormal(sigma=1.0, size=COMPONENTS) * rng.choice([1, 1, 1, -0.3], size=COMPONENTS)
    clean = np.exp(0.4 * rng.normal(size=MOST) + 0.3 * rng.normal(size=(TIMESTEPS, MOST)) - 0.125)
    loss = clean * (1 + size[:, None, None] * law(rng, (COMPONENTS, 1, MOST)))
    confidence = 1 - (1 - LEVEL) / COMPONENTS  # of each component (Bonferroni)
    low, high, left = np.zeros(COMPONENTS), np.zeros(COMPONENTS), np.arange(COMPONENTS)
    for n in range(sequential.FIRST_LOOK, MOST + 1, block):
        estimate, influence = sequential.effect_and_influence(clean[:, :n], loss[left][..., :n])
        below, above = stats.skewed_sequence(influence, confidence, planned=4 * sequential.FIRST_LOOK)
        low[left], high[left] = estimate - below, estimate + above
        left = left[(low[left] <= 0) & (high[left] >= 0) & (high[left] - low[left] > WIDTH)]
        if not len(left):
            break
    truth = 100 * size
    holds = bool(((low <= truth) & (truth <= high)).all())
    return holds, bool(((low > 0) & (truth <= 0) | (high < 0) & (truth >= 0)).any())


def circuit_losses(
    rng: np.random.Generator, repeats: int, images: int
) -> Float[np.ndarray, "repeat 3 image"]:
    """Losses with everything ablated, of the intact network, and of a circuit of faithfulness 0.8; skewed
    over images."""
    intact = np.exp(0.5 * rng.normal(size=(repeats, images)) - 0.125)
    increase = np.exp(0.7 * rng.normal(size=(2, repeats, images)) - 0.245)
    return np.stack([intact + 4 * increase[0], intact, intact + 0.8 * increase[1]], axis=1)


def _faithfulness(rng: np.random.Generator, repeats: int) -> list[Check]:
    results = []
    for images in (8, 32):
        units = stats.Units(np.arange(images), images, False)
        covered = []
        for ablated, intact, circuit in circuit_losses(rng, repeats, images):
            f = lambda w: faithfulness(circuit, ablated, intact, w)  # noqa: B023
            interval = stats.jackknife_interval(f, units)
            covered.append(interval.low <= 0.8 <= interval.high)
        results.append(covers(f"Student, faithfulness from {images} pictures", np.array(covered, bool)))
    return results


def _people(rng: np.random.Generator, repeats: int, people: int = 40, each: int = 26) -> list[Check]:
    """Pooled relative loss increase from images of 40 people, a tenth of the variance of log losses between
    people."""
    person = np.repeat(np.arange(people), each)
    units, covered = stats.Units(person, people, True), []
    for number in range(repeats):
        between = np.sqrt(0.1) * rng.normal(size=(2, people))[:, person]
        logs = between + np.sqrt(0.9) * rng.normal(size=(2, len(person)))
        clean = np.exp(0.5 * logs[0] - 0.125)[None]
        loss = clean[None] * (1 + 0.2 * np.exp(0.5 * logs[1] - 0.125))
        statistic = lambda w: effects.pooled_relative_increase(clean, loss, w)  # noqa: B023
        interval = stats.bootstrap_units(statistic, units, repeats=300, seed=number)
        covered.append(interval.low[0] <= 20 <= interval.high[0])
    return [covers(f"BCa over people, {people} of {each} pictures each", np.array(covered, bool))]
