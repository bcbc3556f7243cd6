"""A first ranking of all components, soon after loading."""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from mechdiff.api.images import Given
from mechdiff.api.result import check_untouched, images_and_set
from mechdiff.circuits import attribution
from mechdiff.circuits.screening import score_all
from mechdiff.models import conditions
from mechdiff.models.denoiser import Denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class Screen:
    """A first ranking by gradients: predicted relative loss increases. It ranks, it does not measure.

    Attributes:
      frame: component, type, score (%), n (images); the largest size first.
      denoiser: its name.
    """

    frame: pd.DataFrame
    denoiser: str

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` components with the largest predicted effects, of either sign."""
        return self.frame.head(n)

    def __repr__(self) -> str:
        shown = self.top(3).round(2).to_string(index=False)
        return f"Screen of {self.denoiser}, {len(self.frame)} components by gradients\n{shown}"

    def _repr_html_(self) -> str:
        return f"<b>Screen of {self.denoiser}, by gradients</b>{self.top(5).round(2).to_html(index=False)}"


def screen(
    model: Any, images: Given = None, *, n: int = 8, timesteps: int = 4, seed: int = 0, probes: int = 4
) -> Screen:
    """Ranks all components by the gradient of the loss in their gates; see `circuits.attribution`.

    Its cost does not grow with the number of components. Zero ablation; arguments as in `sweep`.
    """
    check_untouched(model, "zero")
    with _compiling(model, images, n, timesteps, probes):
        _, eval_set = images_and_set(model, images, n, timesteps, seed, 0)
    chosen = model.denoiser.components()
    _, relative = score_all(model.denoiser, eval_set, chosen, ("identity",), probes=probes)
    score = relative["identity"].mean(axis=1)
    frame = pd.DataFrame(
        {
            "component": [component.name for component in chosen],
            "type": [component.component_type for component in chosen],
            "score": score,
            "n": n,
        }
    )
    order = np.argsort(-np.abs(score), kind="stable")
    return Screen(frame.iloc[order].reset_index(drop=True), model.name)


@contextlib.contextmanager
def _compiling(model: Any, images: Given, n: int, timesteps: int, probes: int) -> Iterator[None]:
    """Compiles in a thread what scores components, while images are rendered or sampled inside of the block,
    for which there are other programs to compile. Images that are read from files are there at once: no
    thread is worth the wait for it when they can't be read."""
    denoiser = model.denoiser
    if images is not None or not isinstance(denoiser, Denoiser) or conditions.takes(denoiser.unet):
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        expansion = attribution.Expansion(probes=probes)
        compiled = pool.submit(attribution.prepare, denoiser, n, timesteps, expansion)
        yield
        compiled.result()
