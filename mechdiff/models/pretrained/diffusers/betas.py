"""Betas of diffusers' schedules that have no name here, by their names there."""

import itertools
import math
from collections.abc import Callable

import numpy as np

MAX_BETA = 0.999  # of schedules that are given by the share of signal


def sigmoid(steps: int, start: float, end: float) -> np.ndarray:
    """Betas along a sigmoid over [-6, 6], as diffusers and ddim name it."""
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))


def of_signal(signal: Callable[[float], float], steps: int) -> np.ndarray:
    """Betas by the share of signal, a function of time in [0, 1], which need not be 1 at 0.

    Example:
      >>> of_signal(lambda time: 1 - time / 2, 2).tolist()
      [0.25, 0.33333333333333337]
    """
    shares = [signal(step / steps) for step in range(steps + 1)]
    return np.array([min(1 - after / before, MAX_BETA) for before, after in itertools.pairwise(shares)])


def laplace_signal(time: float) -> float:
    """diffusers' `laplace`: e^l / (1 + e^l) under a root, l the log of a distribution of Laplace."""
    centered = 0.5 - time
    snr = math.exp(-0.5 * math.copysign(1, centered) * math.log(1 - 2 * abs(centered) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def exponential_signal(time: float) -> float:
    """diffusers' `exp`."""
    return math.exp(-12 * time)


BY_SIGNAL = {"laplace": laplace_signal, "exp": exponential_signal}  # they have no beta_start and beta_end
NAMES = ("sigmoid", *BY_SIGNAL)


def named(name: str, steps: int, start: float, end: float) -> np.ndarray:
    """The betas of one of `NAMES`."""
    return sigmoid(steps, start, end) if name == "sigmoid" else of_signal(BY_SIGNAL[name], steps)
