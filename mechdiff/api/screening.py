"""A first ranking of all components, soon after loading."""

import contextlib
import dataclasses
import html
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechdiff.api.images import Given, number_wanted
from mechdiff.api.result import check_untouched, images_and_set
from mechdiff.circuits import attribution
from mechdiff.circuits.screen_scores import score_all, score_error
from mechdiff.core import devices, ranges
from mechdiff.core.config import Precision
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models import conditions
from mechdiff.models.denoiser import Denoiser
from mechdiff.storage.run_log import progress

IMAGES = 8  # at most, where their number is not said


@dataclasses.dataclass(frozen=True, eq=False)
class Screen:
    """A first ranking by gradients: predicted relative loss increases. It ranks, it does not measure.

    Attributes:
      frame: component, type, score (%), n (images); the largest size first. Scores have no interval: how far
        a prediction is from what an ablation does, images don't show. `Model.sweep` measures.
      denoiser: its name.
      precision_error: largest error of a score by reduced precision, in points; 0 in float32.
      inputs: what images it was made on.
    """

    frame: pd.DataFrame
    denoiser: str
    precision_error: float = 0.0
    inputs: str = ""

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` components with the largest predicted effects, of either sign."""
        return self.frame.head(ranges.whole("n", n, 1, meaning="how many components"))

    @property
    def _about(self) -> str:
        on = f" on {self.frame.n[0]} images ({self.inputs})" if self.inputs else ""
        return f"{self.denoiser}, {len(self.frame)} components by gradients{on}"

    def __repr__(self) -> str:
        shown = self.top(3).round(2).to_string(index=False)
        precise = f", precision {self.precision_error:.2g} points" if self.precision_error else ""
        return f"Screen of {self._about}{precise}; it ranks, it does not measure\n{shown}"

    def _repr_html_(self) -> str:
        rows = self.top(5).round(2).to_html(index=False, border=0)
        unit = "<small>score: predicted relative loss increase, %; it ranks, it does not measure</small>"
        return f"<b>Screen of {html.escape(self._about)}</b>{rows}{unit}"


def screen(
    model: Any,
    images: Given = None,
    *,
    n: int | None = None,
    timesteps: int = 4,
    seed: int = 0,
    random_vectors: int = 4,
    precision: Precision = "float32",
) -> Screen:
    """Ranks all components by the gradient of the loss in their gates; see `circuits.attribution`.

    Its cost does not grow with the number of components. Zero ablation; arguments as in `sweep`.

    Args:
      n: how many images; None: all that are given, at most 8, and of `EvalImages` all.
      precision: of products, see `core.devices`; what it changes is measured and stated with the scores.
    """
    check_untouched(model, "zero")
    random_vectors = ranges.whole("random_vectors", random_vectors, 1, meaning="how many random vectors")
    with progress(1, desc=f"screening {model.name}", unit="pass"):
        size = _Size(number_wanted(model, images, n, IMAGES), timesteps, random_vectors)
        return _screen(model, images, size, seed, precision)


class _Size(NamedTuple):
    """How many images, timesteps and random vectors."""

    n: int
    timesteps: int
    random_vectors: int


def _screen(model: Any, images: Given, size: _Size, seed: int, precision: Precision) -> Screen:
    n, timesteps, random_vectors = size
    with _compiling(model, images, size, precision):
        prepared, eval_set = images_and_set(model, images, n, timesteps, seed, 0, brief=True)
    chosen = model.denoiser.components()

    def relative(eval_set: EvalSet, replacements: None = None) -> Float[np.ndarray, "component t"]:
        at = ("identity",)
        return score_all(model.denoiser, eval_set, chosen, at, random_vectors=random_vectors)[1]["identity"]

    devices.warn_of(precision)
    with devices.multiplying(precision):
        score = relative(eval_set).mean(axis=1).astype(np.float64)  # which tables can round
    error = score_error(relative, eval_set, setting=precision)
    frame = pd.DataFrame(
        {
            "component": [component.name for component in chosen],
            "type": [component.component_type for component in chosen],
            "score": score,
            "n": n,
        }
    )
    order = np.argsort(-np.abs(score), kind="stable")
    return Screen(frame.iloc[order].reset_index(drop=True), model.name, error, prepared.label)


@contextlib.contextmanager
def _compiling(model: Any, images: Given, size: _Size, precision: Precision) -> Iterator[None]:
    """Compiles in a thread what scores components, while images are rendered or sampled inside of the block,
    for which there are other programs to compile. Images that are read from files are there at once: no
    thread is worth the wait for it when they can't be read."""
    denoiser = model.denoiser
    if images is not None or not isinstance(denoiser, Denoiser) or conditions.takes(denoiser.unet):
        yield
        return

    def compile_scores() -> None:
        with devices.multiplying(precision):  # it holds in one thread only
            expansion = attribution.Expansion(random_vectors=size.random_vectors)
            attribution.prepare(denoiser, size.n, size.timesteps, expansion)

    with ThreadPoolExecutor(1) as pool:
        compiled = pool.submit(compile_scores)
        yield
        compiled.result()
