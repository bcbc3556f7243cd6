"""When a sequential sweep is certain of a component: confidence sequences of pooled relative loss increases.

What is certain: the sign. The intervals rest on an asymptotic theorem, corrected for few and skewed images
(`stats.skewed_sequence`). Where the loss increase is lognormal over images with log-sd 1, joint
intervals of 95 % held all sizes in four simulated runs of five, and no sign was wrong (the calibration has
the numbers): the fewer images carry a loss increase, the less certain is its *size*. A component that
matters only for images that were not sampled can't be distinguished from one that does not matter.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError
from mechdiff.stats import ratio_influence, skewed_sequence

MIN_IMAGES = 32  # images before the first look: the sequence is asymptotic


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """When a component is decided.

    Attributes:
      width: in percent of the clean loss, above 0; an interval this narrow is certain enough, wherever it
        lies.
      confidence: coverage of the intervals at any time, in (0, 1).
      joint: whether `confidence` is that of all intervals together (Bonferroni), or of each.

    Raises:
      ConfigError: a width that is not positive and finite, or a confidence outside (0, 1).

    Example:
      >>> StoppingRule(2.0).of_each(10)
      0.995
    """

    width: float
    confidence: float = 0.95
    joint: bool = True

    def __post_init__(self):
        if not 0 < self.width < math.inf:
            raise ConfigError(
                f"width={self.width} must be a finite number above 0, in percent of the clean loss"
            )
        if (
            not 0 < ranges.finite("confidence", self.confidence) < 1
        ):  # shared among many components, one below 0 would look like one above
            raise ConfigError(f"confidence={self.confidence} must lie between 0 and 1; 0.95 is usual")

    def of_each(self, intervals: int) -> float:
        """Confidence of each of `intervals` intervals."""
        return 1 - (1 - self.confidence) / (intervals if self.joint else 1)


@dataclasses.dataclass(frozen=True)
class SequentialResult:
    """Relative loss increase of every component, as certain as the rule asks, or as the images allowed.

    Attributes:
      components: names.
      estimate: pooled relative loss increase (%), the mean over timesteps of 100 (L(do) - L0) / L0.
      low, high: its confidence sequence where it stopped; not symmetric, see `stats.skewed_sequence`. The
        sign is decided; the size is less certain the fewer images carry it.
      images: how many each component was scored on.
      decided: whether the interval lies on one side of zero or is narrow enough.
      spent: components x images that were computed.
      fixed: components x images of the smallest fixed design with the same result: one number of images for
        all (nested in timesteps if these were), enough for the component that needs most, by an ordinary
        interval of the same confidence. It is what hindsight would choose: a planner without these data would
        spend more.
      precision_error: largest error of a relative loss increase by reduced precision of products, in points,
        see `precision.largest_error`; 0 in full precision. Intervals are wider by it at both ends.
    """

    components: tuple[str, ...]
    estimate: Float[np.ndarray, " component"]
    low: Float[np.ndarray, " component"]
    high: Float[np.ndarray, " component"]
    images: Int[np.ndarray, " component"]
    decided: Bool[np.ndarray, " component"]
    spent: int
    fixed: int
    precision_error: Float[np.ndarray, " component"]


def effect_and_influence(
    clean: Float[np.ndarray, "t image"], loss: Float[np.ndarray, "*component t image"]
) -> tuple[Float[np.ndarray, " *component"], Float[np.ndarray, "*component image"]]:
    """Pooled relative loss increase (%), and what each image adds to it (delta method for ratios of means).

    The estimate's standard error is that of the mean of the influences, which is 0.
    """
    ratio = loss.mean(-1) / clean.mean(-1)
    return 100 * (ratio.mean(-1) - 1), ratio_influence(clean, loss).mean(-2)


def interim_result(
    clean: Float[np.ndarray, "t image"],
    loss: Float[np.ndarray, "component t image"],
    names: tuple[str, ...],
    rule: StoppingRule,
    error: Float[np.ndarray, " component"] | float = 0.0,
) -> SequentialResult:
    """The state of every component after the images so far; losses of later images are NaN.

    Args:
      clean, loss: of the untouched network, and without each component.
      names: of the components.
      error: of their relative loss increases by reduced precision, in points.
    """
    images = np.isfinite(loss[:, 0]).sum(-1)
    confidence = rule.of_each(len(names))
    estimate, deviation, low, high = (np.empty(len(images)) for _ in range(4))
    for size in np.unique(images):  # components that were left out together
        rows = images == size
        estimate[rows], influence = effect_and_influence(clean[:, :size], loss[rows][..., :size])
        deviation[rows] = influence.std(-1, ddof=1)
        below, above = skewed_sequence(influence, confidence, planned=4 * MIN_IMAGES)
        low[rows], high[rows] = estimate[rows] - below, estimate[rows] + above
    error = np.broadcast_to(error, images.shape).astype(np.float64)
    low, high = low - error, high + error
    return SequentialResult(
        components=names,
        estimate=estimate,
        low=low,
        high=high,
        images=images,
        decided=(low > 0) | (high < 0) | (high - low <= rule.width),
        spent=int(images.sum()),
        fixed=len(images) * int(_fixed_images(estimate, deviation, rule.width, confidence).max()),
        precision_error=error,
    )


def _fixed_images(
    estimate: np.ndarray, deviation: np.ndarray, width: float, confidence: float
) -> Int[np.ndarray, " component"]:
    """Images with which an ordinary interval of each component is certain, at least `MIN_IMAGES`."""
    z = special.ndtri((1 + confidence) / 2)
    reach = np.maximum(np.abs(estimate), width / 2)  # half-width that is small enough
    return np.maximum(MIN_IMAGES, np.ceil((z * deviation / reach) ** 2)).astype(int)
