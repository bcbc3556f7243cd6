"""One model over its training: swept at every exported step, on the same images and noise."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from mechdiff.api import paired_sweeps
from mechdiff.api.compare import Comparison, compared
from mechdiff.api.images import Given
from mechdiff.api.loading import load
from mechdiff.api.result import Result
from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import CheckpointError
from mechdiff.models.load import steps_of
from mechdiff.storage import files

if TYPE_CHECKING:  # methods import it when they draw: matplotlib would make every loading longer
    from mechdiff.report.single import Plot


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """One model at several steps of its training, on the same images and noise.

    Attributes:
      results: training step -> sweep, ascending.
      unet: of all; None: not of ours.
    """

    results: dict[int, Result]
    unet: UNetConfig | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """step, component, delta_loss (%), low, high, n: a row for each step and component."""
        tables = []
        for step, result in self.results.items():
            pooled = result.effects.pooled
            columns = {
                "step": step,
                "component": result.effects.components,
                "delta_loss": pooled.estimate,
                "low": pooled.low,
                "high": pooled.high,
                "n": pooled.n,
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def changes(self) -> Comparison:
        """From the first step to the last."""
        first, *_, last = self.results.values()
        return compared(first, last, self.unet)

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """As `Comparison.dataset`, of all steps; differences are from the first to the last."""
        labels = [f"step {step}" for step in self.results]
        return paired_sweeps.together(
            list(self.results.values()), labels, self.unet, steps=list(self.results)
        )

    def save(self, folder: str | Path) -> Path:
        """As `Comparison.save`, with all steps on the page; and `course.csv`."""
        folder = files.ensure_writable(Path(folder))
        files.write_atomic(folder / "course.csv", self.frame.to_csv(index=False))
        return paired_sweeps.save(folder, self.dataset, self.changes().frame)

    def plot(self, *components: str) -> "Plot":
        """Effects of components over training; default: the five largest at the last step."""
        from mechdiff.report import single

        last = list(self.results.values())[-1]
        chosen = components or tuple(last.top(5)["component"])
        frame = self.frame.set_index("component")
        lines = {}
        for name in chosen:
            rows = frame.loc[[name]]
            lines[name] = tuple(rows[column].tolist() for column in ("delta_loss", "low", "high"))
        return single.plot_course(list(self.results), lines, last._title)

    def __repr__(self) -> str:
        return f"Course({len(self.results)} steps: {', '.join(map(str, list(self.results)[:10]))})"


def compare_steps(
    run: str | Path, images: Given = None, *, background: str = "", white: int = 0, **settings: Any
) -> Course:
    """A model as it was at every exported step of its training (`train.keep`), the end among them.

    Args:
      run: the folder of the training.
      images: see `images.eval_images`; None: those that the last model would be examined on.
      background, white, settings: as in `compare`.

    Raises:
      CheckpointError: fewer than two steps were exported.

    Example (`mechdiff compare RUN` does the same):
      >>> compare_steps("runs/faces", "my_images/", n=16).plot().save("course.png")  # doctest: +SKIP
      >>> compare_steps("checkpoints")  # no run: no steps  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      mechdiff.core.errors.CheckpointError: checkpoints has 0 exported steps; at least 2 are compared ...
    """
    folders = steps_of(run)
    if len(folders) < 2:
        raise CheckpointError(
            f"{run} has {len(folders)} exported steps; at least 2 are compared (train with "
            "--set=train.keep=STEP,STEP)"
        )
    models = {step: load(folder) for step, folder in folders.items()}
    in_order = list(models.values())
    results = paired_sweeps.swept(in_order, images, in_order[-1], settings, background, white)
    return Course(dict(zip(models, results, strict=True)), paired_sweeps.common_unet(in_order))
