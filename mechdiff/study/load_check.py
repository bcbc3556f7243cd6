"""A check at loading: does a network denoise the images it is examined on as well as its record says?

With a wrong schedule, prediction type, range of values or crop a network runs, but its loss is wrong. The
loss is compared with that in its training record, and with a guess that knows only the variance v of the
pixels: for x_t = a x_0 + s e the best linear predictor of e has the error a^2 v / (a^2 v + s^2) (the Wiener
filter of white images). A slightly different crop is not detected (for a shipped network of CelebA, center-60
of 89x109 instead of center: ratio 1.04).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core import keys
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.inputs import channels_first
from mechdiff.training import evaluation

IMAGES = 16  # scored, at most
TIMESTEPS = 8  # where the record names none
TOLERANCE, ERRORS = 0.2, 3  # beyond both, a share and standard errors, a loss is unlike its record


@dataclasses.dataclass(frozen=True)
class LoadCheck:
    """A network's loss on the images it is about to be examined on.

    Attributes:
      images: number of scored images.
      timesteps: those scored, ascending.
      loss: mean squared error of the predicted noise at each.
      recorded: the same in its training record, on held-out images; None: not recorded.
      guess: of the best linear guess from the variance of the pixels.
      of_guess: the loss as a share of the guess: sums over timesteps, weighted by min(1, 1 / SNR), so that
        small errors of the predicted noise (or image) where all is noise (or image) count for little.
      ratio: of the loss to the recorded one, mean over timesteps and images; None: not recorded.
      ratio_error: its standard error over images.
      notes: how the images were fitted to the network.
    """

    images: int
    timesteps: tuple[int, ...]
    loss: tuple[float, ...]
    recorded: tuple[float, ...] | None
    guess: tuple[float, ...]
    of_guess: float
    ratio: float | None
    ratio_error: float | None
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """`"as recorded"`, `"unlike its record"`, `"no better than a guess"`, or `"no record"`."""
        if self.of_guess >= 1:
            return "no better than a guess"
        if self.ratio is None or self.ratio_error is None:
            return "no record"
        beyond = abs(self.ratio - 1) > max(TOLERANCE, ERRORS * self.ratio_error)
        return "unlike its record" if beyond else "as recorded"

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        mean = (
            f"clean loss {np.mean(self.loss):.4g} on {self.images} images at {len(self.timesteps)} timesteps"
        )
        share = self.of_guess
        guess = f"{share:.2f}" if share < 10 else f"{share:.0f} times that"
        guess = f"{guess} of a guess by pixel variance"
        if self.ratio is not None:
            compared = f"{self.ratio:.2f} (standard error {self.ratio_error:.2f}) of that in its record"
            guess = f"{compared}, {guess}"
        advice = {
            "no better than a guess": "it is hardly trained, or its noise schedule, prediction, range of "
            "values or preprocessing are not these",
            "unlike its record": "these images are of another kind than those it was trained on, or prepared "
            "otherwise (crop, filter)",
        }
        parts = [f"{mean}: {guess}"]
        if self.verdict in advice:
            parts.append(f"{self.verdict}: {advice[self.verdict]}")
        return "; ".join([*parts, *self.notes])

    def to_dict(self) -> dict:
        """JSON-ready, with the verdict; the summary is called `words` there, as in records of before."""
        return dataclasses.asdict(self) | {"verdict": self.verdict, "words": self.summary}


def check(
    denoiser: Examinable, prepared: EvalImages, record: Mapping[str, Any] | None = None, seed: int = 0
) -> LoadCheck:
    """Scores a network on the first of the images that it is examined on.

    Args:
      record: of its training; `levels` and `test_loss_by_level` are compared with.
      seed: of the noise.
    """
    record = record or {}
    recorded = record.get("test_loss_by_level")
    timesteps = record.get("levels") if recorded else None
    if timesteps is None:
        timesteps = timesteps_by_log_snr(denoiser.schedule, min(TIMESTEPS, denoiser.schedule.steps))
    timesteps = np.asarray(timesteps, np.int32)
    images = np.asarray(prepared.scored[:IMAGES])
    key = keys.stream(jax.random.key(seed), "load check")
    condition = conditions.at(prepared.scored_condition, slice(IMAGES))
    losses = np.asarray(_losses(denoiser, key, images, timesteps, condition), np.float64)
    ratios = None if not recorded else (losses / np.asarray(recorded)[:, None]).mean(0)
    few = len(images) < 2
    guessed, snr = guess(denoiser, images, timesteps), _snr(denoiser, timesteps)
    weights = np.minimum(1, 1 / snr)
    return LoadCheck(
        images=len(images),
        timesteps=tuple(int(t) for t in timesteps),
        loss=tuple(losses.mean(1).tolist()),
        recorded=None if not recorded else tuple(recorded),
        guess=tuple(guessed.tolist()),
        of_guess=float(weights @ losses.mean(1) / (weights @ guessed)),
        ratio=None if ratios is None else float(ratios.mean()),
        ratio_error=None
        if ratios is None
        else float("inf" if few else ratios.std(ddof=1) / len(ratios) ** 0.5),
        notes=() if condition is None else ("each image under its own condition",),
    )


def guess(
    denoiser: Examinable, images: Images, timesteps: Int[np.ndarray, " timesteps"]
) -> Float[np.ndarray, " timesteps"]:
    """Loss of the best linear guess of the noise from the mean and variance of the pixels alone."""
    values = np.asarray(images, np.float64)
    if channels_first(denoiser.image_shape):
        values = np.moveaxis(values, 1, -1)
    variance = values.reshape(-1, values.shape[-1]).var(0).mean()
    snr = _snr(denoiser, timesteps)
    return snr * variance / (snr * variance + 1)


def _snr(denoiser: Examinable, timesteps: Int[np.ndarray, " timesteps"]) -> Float[np.ndarray, " timesteps"]:
    return np.exp(np.asarray(denoiser.schedule.log_snr, np.float64)[timesteps])


@jax.jit
def _losses(
    denoiser: Examinable,
    key: PRNGKey,
    images: Images,
    timesteps: Int[Array, " timesteps"],
    condition: PyTree,
) -> Float[Array, "timesteps images"]:
    predict = functools.partial(denoiser.predict, denoiser.identity, condition=condition)
    return evaluation.losses(predict, denoiser.schedule, key, images, timesteps)
