"""Two models on the same images and noise, and one model over its training."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from mechdiff.analysis.changes import changes
from mechdiff.analysis.paired import PairedDifference, paired_difference
from mechdiff.api.classes import check_labels, for_other
from mechdiff.api.images import Given, eval_images
from mechdiff.api.loading import load
from mechdiff.api.model import Model
from mechdiff.api.result import Result, references, sweep
from mechdiff.core import ranges
from mechdiff.core.config import UNetConfig, to_dict
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.interventions.describe import table
from mechdiff.models.load import steps_of
from mechdiff.storage import files, labelled
from mechdiff.study.eval_images import EvalImages

if TYPE_CHECKING:  # methods import it when they draw: matplotlib would make every loading longer
    from mechdiff.report.single import Plot

SHARED = ("inputs", "images_sha256", "noise_seed", "preprocessing", "schedule")  # by all that are compared
UNITS = (
    "before, after: relative loss increase, %, pooled over noise levels; difference: percentage points with "
    "95 % interval over images, or people where they are known; p: sign flips, Holm over components"
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
        frame.attrs["units"] = UNITS
        order = np.argsort(-np.abs(paired.difference.estimate), kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` components whose effect changed most, in either direction."""
        return self.frame.head(ranges.whole("n", n, 1, meaning="how many components"))

    def plot(self, n: int = 20) -> "Plot":
        """The largest changes with their intervals."""
        from mechdiff.report import single

        top = self.top(n)
        columns = [top[name].tolist() for name in ("component", "difference", "low", "high")]
        label = "change of relative loss increase, percentage points"
        return single.plot_ranked(*columns, label=label, title=self.title)

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """Effects of both, their differences at every timestep and pooled: see `analysis.changes.changes`."""
        labels = [side.dataset.attrs["denoiser"] for side in (self.before, self.after)]
        return _changes([self.before, self.after], labels, self.unet)

    def save(self, folder: str | Path) -> Path:
        """Writes `compare.zarr`, `compare.csv` and the page "what changed"; returns the page's path."""
        return _save(Path(folder), self.dataset, self.frame)

    @property
    def title(self) -> str:
        """Both names, ablation, and n."""
        first, last = (side.dataset.attrs["denoiser"] for side in (self.before, self.after))
        return f"{first} (before), {last} (after): {self.before.ablation} ablation, n = {self.paired.n}"

    @property
    def _few(self) -> str:
        """That no p can be small with so few images, where that is so."""
        least = self.paired.least_p
        return f"; no p can fall below {least:.2g}, take more images" if least > 0.05 else ""

    def __repr__(self) -> str:
        return f"Comparison({self.title}{self._few})\n{self.top(3).round(3).to_string(index=False)}"

    def _repr_html_(self) -> str:
        facts = [("of", self.title), ("images", self.before.dataset.attrs.get("inputs", ""))]
        rows = self.top(5).round(3).to_html(index=False, border=0)
        return f"{table('Comparison', facts)}{rows}<small>{UNITS}{self._few}</small>"


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
        parts = []
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
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def changes(self) -> Comparison:
        """From the first step to the last."""
        first, *_, last = self.results.values()
        return _compared(first, last, self.unet)

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """As `Comparison.dataset`, of all steps; differences are from the first to the last."""
        labels = [f"step {step}" for step in self.results]
        return _changes(list(self.results.values()), labels, self.unet, steps=list(self.results))

    def save(self, folder: str | Path) -> Path:
        """As `Comparison.save`, with all steps on the page; and `course.csv`."""
        folder = files.ensure_writable(Path(folder))
        files.write_atomic(folder / "course.csv", self.frame.to_csv(index=False))
        return _save(folder, self.dataset, self.changes().frame)

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


def compare(before: Any, after: Any, images: Given = None, **settings: Any) -> Comparison:
    """Effects of ablating each component in two models, on the same images, timesteps and noise.

    Args:
      before, after: models, or what `load` takes.
      images: see `images.eval_images`; None: those that `before` would be examined on, for both. Labels of
        these, and of what `eval_images` returned, are of the classes of `before`; `after` is given its own
        classes of the same names.
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
    _check_comparable(before, after)
    swept_before, swept_after = _swept([before, after], images, before, settings)
    return _compared(swept_before, swept_after, _common_unet([before, after]))


def compare_steps(run: str | Path, images: Given = None, **settings: Any) -> Course:
    """A model as it was at every exported step of its training (`train.keep`), the end among them.

    Args:
      run: the folder of the training.
      images: see `images.eval_images`; None: those that the last model would be examined on.
      settings: of `result.sweep`.

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
    results = _swept(in_order, images, in_order[-1], settings)
    return Course(dict(zip(models, results, strict=True)), _common_unet(in_order))


def _model(model: Any) -> Any:
    return model if isinstance(model, Model) else load(model)


def _check_comparable(before: Any, after: Any) -> None:
    shapes = [tuple(model.denoiser.image_shape) for model in (before, after)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"models of images {shapes[0]} and {shapes[1]} can't be paired image by image")
    log_snr, other = (np.asarray(model.denoiser.schedule.log_snr) for model in (before, after))
    if log_snr.shape != other.shape or not np.allclose(log_snr, other, atol=1e-4):
        raise ConfigError(f"{before.name} and {after.name} have different noise schedules: can't be paired")


def _compared(before: Result, after: Result, unet: UNetConfig | None) -> Comparison:
    paired = paired_difference(before.dataset, after.dataset, before.ablation)
    return Comparison(before, after, paired, unet)


def _swept(models: Sequence[Any], images: Given, chooser: Any, settings: dict[str, Any]) -> list[Result]:
    """Sweeps of all models on the same images; where none are given, on those of `chooser`."""
    n = settings.get("n", 16)
    if images is None:
        images = eval_images(chooser, None, n, n)
    reference = references(settings.get("ablation", "zero"), n)
    # All are prepared before the first sweep: whether they are the same is known before anything is computed.
    shown = [eval_images(model, images, n, reference) for model in models]
    if isinstance(images, EvalImages):
        shown = [for_other(images, chooser, model) for model in models]
    for model, own in zip(models[1:], shown[1:], strict=True):
        _check_same_images(models[0].name, shown[0], model.name, own)
        check_labels(shown[0], models[0], own, model)
    return [sweep(model, own, **settings) for model, own in zip(models, shown, strict=True)]


def _check_same_images(name: str, images: EvalImages, other: str, others: EvalImages) -> None:
    """Refuses scored images that differ: with those that each model prepares, effects can't be paired.

    Args:
      name, images: of one model, and those that it would be swept on.
      other, others: the same of another.

    Raises:
      ConfigError: they differ; says why, and the way out.
    """
    if np.array_equal(images.scored, others.scored):
        return
    prepared, otherwise = (str(side.facts.get("preprocessing")) for side in (images, others))
    if prepared != otherwise:
        raise ConfigError(
            f"{name} and {other} prepare images differently ({prepared} / {otherwise}), so effects can't be "
            "paired image by image; give an array of images in the models' own size (.npy), which is taken "
            "as it is"
        )
    raise ConfigError(
        f"{name} and {other} would be swept on different images: those that a model was trained on are left "
        "out, and they were not trained on the same; give images that none of them was trained on"
    )


def _common_unet(models: Sequence[Any]) -> UNetConfig | None:
    """The UNet that all models are, where they are one."""
    unets = [getattr(model.denoiser, "unet", None) for model in models]
    return unets[0] if all(unet == unets[0] for unet in unets) else None


def _changes(
    results: Sequence[Result], labels: Sequence[str], unet: UNetConfig | None, **facts: Any
) -> xr.Dataset:
    kept = {name: results[0].dataset.attrs.get(name) for name in SHARED}
    digests = [result.dataset.attrs.get("parameters_sha256") for result in results]
    kept["parameters_sha256"] = digests if all(digests) else None
    if unet is not None:
        facts["unet"] = to_dict(unet)
    facts = {name: value for name, value in {**kept, **facts}.items() if value is not None}
    return changes([result.dataset for result in results], labels, results[0].ablation, facts)


def _save(folder: Path, dataset: xr.Dataset, frame: pd.DataFrame) -> Path:
    from mechdiff.report import changes as page

    folder = files.ensure_writable(folder)
    labelled.replace(folder / f"{page.NAME}.zarr", dataset)
    files.write_atomic(folder / f"{page.NAME}.csv", frame.to_csv(index=False))
    return page.build(folder)
