"""Samples of a model as methods return them: with what was done, and what reduced precision changes."""

from typing import Any

from mechdiff.api import sampling
from mechdiff.api.show import Samples
from mechdiff.core import devices, ranges
from mechdiff.core.config import Precision
from mechdiff.core.types import Images
from mechdiff.models import conditions
from mechdiff.models.load import check_stated
from mechdiff.sweeps import precision as reduced_precision


def draw(
    model: Any, n: int, *, seed: int, steps: int | None, condition: Any, precision: Precision
) -> Samples:
    """`Model.sample`, whose arguments these are; errors as of `sampling.sample`."""
    check_stated(model.record, model.name)
    n = ranges.whole("n", n, 1)
    if condition is not None:
        condition = conditions.of_rows(model.denoiser.network, condition, n)

    def draw_first(count: int) -> Images:
        return sampling.sample(
            model.denoiser,
            model.intervention,
            count,
            seed=seed,
            condition=conditions.at(condition, slice(count)),
            steps=steps,
            sources=model.sources,
        )

    devices.warn_of(precision)
    images, error = reduced_precision.drawn(precision, draw_first, n)
    doing = "no intervention" if model.doing == "identity" else model.doing
    return Samples(images, f"{model.name}, {doing}", seed, error)
