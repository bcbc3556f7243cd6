"""Two models on the same images and noise."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from mechdiff.analysis import margins
from mechdiff.analysis.paired import PairedDifference, paired_difference
from mechdiff.api import paired_sweeps
from mechdiff.api.images import Given
from mechdiff.api.loading import load
from mechdiff.api.model import Model
from mechdiff.api.result import Result
from mechdiff.core import ranges
from mechdiff.core.config import UNetConfig
from mechdiff.interventions.describe import table
from mechdiff.stats import few_images

if TYPE_CHECKING:  # methods import it when they draw: matplotlib would make every loading longer
    from mechdiff.report.single import Plot

COLUMN_MEANINGS = (
    "before, after: relative loss increase, %, pooled over noise levels; difference: percentage points with "
    "95 % interval over images, or people where they are known, of each component alone; p: sign flips, Holm "
    "over components"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What changed from one model to another: effects of ablations, paired by image and noise.

    Attributes:
      before, after: their sweeps, in this order.
      paired: differences with intervals and p values.
      unet: of both; None: they differ, or are not of ours.
    """

    before: Result
    after: Result
    paired: PairedDifference
    unet: UNetConfig | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """All components, the largest change first: component, before, after (%), difference (percentage
        points), low, high, p (Holm), n (images)."""
        paired = self.paired
        frame = pd.DataFrame(
            {
                "component": paired.components,
                "before": paired.before,
                "after": paired.after,
                "difference": paired.difference.estimate,
                "low": paired.difference.low,
                "high": paired.difference.high,
                "p": paired.p,
                "n": paired.n,
            }
        )
        frame.attrs["units"] = COLUMN_MEANINGS
        order = np.argsort(-np.abs(paired.difference.estimate), kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` components whose effect changed most, in either direction."""
        return self.frame.head(ranges.whole("n", n, 1, meaning="how many components"))

    def plot(self, n: int = 20) -> "Plot":
        """The largest changes with their intervals."""
        from mechdiff.report import single

        top = self.top(n)
        return single.plot_ranked(
            top["component"].tolist(),
            top["difference"].tolist(),
            top["low"].tolist(),
            top["high"].tolist(),
            label="change of relative loss increase, percentage points",
            title=self.title,
        )

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """Effects of both, their differences at every timestep and pooled: see `analysis.changes.changes`."""
        labels = [side.dataset.attrs["denoiser"] for side in (self.before, self.after)]
        return paired_sweeps.together([self.before, self.after], labels, self.unet)

    def save(self, folder: str | Path) -> Path:
        """Writes `compare.zarr`, `compare.csv` and the page "what changed"; returns the page's path."""
        return paired_sweeps.save(Path(folder), self.dataset, self.frame)

    @property
    def title(self) -> str:
        """Both names, ablation, and n."""
        first, last = (side.dataset.attrs["denoiser"] for side in (self.before, self.after))
        return f"{first} (before), {last} (after): {self.before.ablation} ablation, n = {self.paired.n}"

    @property
    def losses(self) -> str:
        """That the models' losses differ by more than a tenth, as effects are percentages of either's own;
        else empty."""
        first, last = (float(side.dataset["clean_loss"].mean()) for side in (self.before, self.after))
        if max(first, last) <= margins.LIKE_LOSSES * min(first, last):
            return ""
        return f"; effects are percentages of a mean clean loss of {first:.3g} before and {last:.3g} after"

    @property
    def _few(self) -> str:
        """That intervals over so few images may be too narrow, and that no p can be small, where it is so."""
        least = self.paired.least_p
        bound = f"; no p can fall below {least:.2g}, take more images" if least > 0.05 else ""
        return few_images(self.paired.n, self.paired.effective) + bound + self.losses

    def __repr__(self) -> str:
        return f"Comparison({self.title}{self._few})\n{self.top(3).round(3).to_string(index=False)}"

    def _repr_html_(self) -> str:
        facts = [("of", self.title), ("images", self.before.dataset.attrs.get("inputs", ""))]
        rows = self.top(5).round(3).to_html(index=False, border=0)
        return f"{table('Comparison', facts)}{rows}<small>{COLUMN_MEANINGS}{self._few}</small>"


def compare(
    before: Any,
    after: Any,
    images: Given = None,
    *,
    background: str = "",
    white: int = 0,
    **settings: Any,
) -> Comparison:
    """Effects of ablating each component in two models, on the same images, timesteps and noise.

    Args:
      before, after: models, or what `load` takes.
      images: see `images.eval_images`; None: those that `before` would be examined on, for both. Labels of
        these, and of what `eval_images` returned, are of the classes of `before`; `after` is given its own
        classes of the same names.
      background: `white` or `black`, put under transparent pixels of image files.
      white: value of white in image files of 16 bits; 0: as the models were trained.
      settings: of `result.sweep`.

    Raises:
      ConfigError: models of images of different shape, of different noise schedules, or that would be swept
        on different images or under classes of different names.

    Example (of trained models in experiments/tours/your_model_and_images.ipynb):
      >>> import numpy as np
      >>> from mechdiff.models.toy import toy_denoiser
      >>> before, after = load(toy_denoiser(large=0.7)), load(toy_denoiser(large=0.5))
      >>> gray = np.full((4, 2, 2, 3), 128, np.uint8)
      >>> compare(before, after, gray, n=4, timesteps=2).top(1)["component"].tolist()
      ['large.mlp']
    """
    before, after = _model(before), _model(after)
    paired_sweeps.check_comparable(before, after)
    models = [before, after]
    swept_before, swept_after = paired_sweeps.swept(models, images, before, settings, background, white)
    if before.denoiser.digests() == after.denoiser.digests():
        logging.warning(
            "%s and %s are the same network: no effect changes from one to the other", before.name, after.name
        )
    return compared(swept_before, swept_after, paired_sweeps.common_unet([before, after]))


def compared(before: Result, after: Result, unet: UNetConfig | None) -> Comparison:
    """What changed between two sweeps of the same images; `unet` is of both models, if it is one."""
    paired = paired_difference(before.dataset, after.dataset, before.ablation)
    return Comparison(before, after, paired, unet)


def _model(model: Any) -> Any:
    return model if isinstance(model, Model) else load(model)
