"""Sweeps of a model, as results that print, rank and draw themselves."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from mechdiff.analysis import effects, variation
from mechdiff.analysis.saved_effects import effect_table, with_effects
from mechdiff.api.cache_folders import writable_cache
from mechdiff.api.images import Given, eval_images, number_wanted
from mechdiff.api.selection import listed
from mechdiff.core import keys, ranges
from mechdiff.core.config import ABLATIONS, SweepConfig
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.interventions.describe import table
from mechdiff.models.denoiser import selected_components
from mechdiff.stats import few_images, units_of
from mechdiff.storage import descriptions, digests, labelled
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.replacement_values import replacement_values
from mechdiff.sweeps.ablation import ablation_sweep

if TYPE_CHECKING:  # methods import it when they draw: matplotlib would make every loading longer
    from mechdiff.report.single import Plot

IMAGES, MIN_IMAGES = 16, 2  # of a sweep: at most, where their number is not said, and at least
COLUMN_MEANINGS = (
    "delta_loss, low, high: relative loss increase, %, pooled over noise levels; 95 % interval over n "
    "images, or people where they are known, of each component alone; p allows for all components. Where few "
    "images carry an effect, intervals are too narrow and p too small"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Effects of ablating each component on a model's denoising loss.

    Attributes:
      dataset: losses, dims `ablation, component, t, image`, see `ablation.ablation_sweep`; with effects and
        their intervals, see `saved_effects.with_effects`.
      ablation: the first of those swept, which tables and plots show.

    Example (on a shipped network in experiments/tours/ten_minutes.ipynb):
      >>> import tempfile
      >>> import numpy as np
      >>> import mechdiff as md
      >>> from mechdiff.models.toy import toy_denoiser
      >>> model, images = md.load(toy_denoiser()), np.full((4, 2, 2, 3), -0.1, np.float32)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = model.sweep(images, n=4, timesteps=2, folder=folder)
      >>> result.top(1)["component"].item()
      'large.mlp'
    """

    dataset: xr.Dataset
    ablation: str

    @functools.cached_property
    def effects(self) -> effects.Effects:
        """Relative loss increases with intervals, per timestep and pooled."""
        return effects.measure(self.dataset, self.ablation)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """All components, the largest loss increase first: component, type, delta_loss (% of the loss, pooled
        over timesteps), low, high (95 % interval), p (sign flips, max-T over components), n (images, or
        people where they are known)."""
        frame = effect_table(self.dataset, self.ablation)
        frame.attrs["units"] = COLUMN_MEANINGS
        return frame

    @functools.cached_property
    def variation(self) -> pd.DataFrame:
        """How each component's effect varies over timesteps and images; see `analysis.variation`."""
        return variation.variation(self.dataset, self.ablation)

    def top(self, n: int = 10, by: str = "delta_loss") -> pd.DataFrame:
        """The `n` components whose ablation raises the loss most; columns as in `frame`.

        Intervals are of each component alone. The largest of many that are alike is so by noise, too: of 56
        without effect, its interval held 0 in .15 to .88 of 200 simulations of 8, 16 and 84 images (.15 where
        nothing is common to components), and p, which allows for all, was at most .05 in .02 to .05.

        Args:
          by: another order, by a column of `variation`, which is then shown as well: `over_images` finds
            what matters for few images, `over_timesteps` what helps at some timesteps and hurts at others.

        Raises:
          ConfigError: no such column.
        """
        n = ranges.whole("n", n, 1, meaning="how many components")
        if by == "delta_loss":
            return self.frame.head(n)
        if by not in variation.COLUMNS:
            raise ConfigError(unknown("order", by, ["delta_loss", *variation.COLUMNS]))
        columns = ["component", by, *variation.INTERVALS.get(by, [])]
        frame = self.frame.merge(self.variation[columns], on="component")
        return frame.sort_values(by, ascending=False, kind="stable", ignore_index=True).head(n)

    def save(self, path: str | Path) -> None:
        """Writes the dataset as a Zarr folder that explains itself: `xarray.open_zarr(path)`."""
        labelled.replace(Path(path), self.dataset)

    def plot(self, component: str | None = None) -> "Plot":
        """Relative loss increase of one component over log-SNR with its interval; of all, as a map.

        Raises:
          ConfigError: a component that was not swept (closest named).
        """
        from mechdiff.report import single

        if component is None:
            return single.plot_map(self.effects, self._title)
        if component not in self.effects.components:
            raise ConfigError(unknown("component", component, self.effects.components))
        return single.plot_component(self.effects, component, self._title)

    @property
    def _title(self) -> str:
        return f"{self.dataset.attrs.get('denoiser', 'model')}, {self.ablation} ablation"

    def _about(self) -> str:
        sizes, units = self.dataset.sizes, units_of(self.dataset)
        inputs = self.dataset.attrs.get("inputs", "images")
        of_people = f" of {units.people} people" if units.clustered else ""
        return (
            f"{self._title}: {sizes['component']} components, {sizes['t']} timesteps, "
            f"{sizes['image']} images{of_people} ({inputs})"
        )

    @property
    def _few(self) -> str:
        """That intervals over so few images may be too narrow, where that is so."""
        units = units_of(self.dataset)
        return few_images(units.count, units.effective)

    def __repr__(self) -> str:
        return f"Result({self._about()[:400]}{self._few})\n{_rounded(self.top(3)).to_string(index=False)}"

    def _repr_html_(self) -> str:
        rows = _rounded(self.top(5)).to_html(index=False, border=0)
        return f"{table('Result', [('of', self._about())])}{rows}<small>{COLUMN_MEANINGS}{self._few}</small>"


def sweep(
    model: Any,
    images: Given = None,
    *,
    n: int | None = None,
    ablation: str = "zero",
    components: Any = None,
    timesteps: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Result:
    """Leaves out one component at a time: `ablation.ablation_sweep` with images found and defaults filled in.

    Args:
      model: a `Model` without intervention.
      images: see `images.eval_images`.
      n: images, each at every timestep; for other ablations than `zero` as many others are
        taken for replacements. None: all that are given, or half of them where
        others are taken, at most 16; of `EvalImages` all.
      ablation: `zero`, `mean`, `resample`, `noise` or `optimal`.
      components: as `Model.ablate` takes them; None: all.
      timesteps: how many, evenly spread in log-SNR.
      seed: of the noise.
      folder: in which what was computed is kept and resumed; None: the user's cache.

    Raises:
      ConfigError: an unknown ablation or component, or a model under an intervention.
    """
    check_untouched(model, ablation)
    n = images_wanted(model, images, n, ablation)
    n, timesteps, seed = _checked(n, timesteps, seed, least=MIN_IMAGES)
    if folder is not None and not isinstance(folder, str | Path):
        raise ConfigError(f"folder={shorten(folder)}: expected a path")
    config = SweepConfig(
        ablations=(ablation,), images=n, timesteps=timesteps, reference_images=references(ablation, n)
    )
    prepared, eval_set = images_and_set(model, images, n, timesteps, seed, config.reference_images)
    replacements = replacement_values(model.denoiser, prepared, eval_set, jax.random.key(seed), config)
    facts = {
        "inputs": prepared.label,
        "noise_seed": seed,
        "images_sha256": digests.digest_arrays(prepared.scored),
        "preprocessing": str(prepared.facts.get("preprocessing", "none")),
    }
    dataset = ablation_sweep(
        model.denoiser,
        eval_set,
        Path(folder or writable_cache() / "sweeps"),
        config=config,
        replacements=replacements,
        chosen=None if components is None else selected_components(model.denoiser, listed(components)),
        facts=facts,
    )
    # What is cached may have been computed under another name.
    dataset = dataset.assign_attrs(denoiser=model.name, **facts).assign_coords(prepared.labels)
    return Result(descriptions.described(with_effects(dataset)), ablation)


def _checked(n: Any, timesteps: Any, seed: Any, least: int = 1) -> tuple[int, int, int]:
    """The numbers of images (at least `least`) and timesteps, and a seed, as whole numbers; ConfigError for
    anything else."""
    how_many = "how many, evenly spread in log-SNR"
    return (
        ranges.whole("n", n, least, meaning="how many images"),
        ranges.whole("timesteps", timesteps, 1, meaning=how_many),
        ranges.seed(seed),
    )


def check_untouched(model: Any, ablation: str) -> None:
    """Raises ConfigError for an unknown ablation, or a `Model` that is under an intervention."""
    if ablation not in ABLATIONS:
        raise ConfigError(unknown("ablation", ablation, ABLATIONS))
    if model.doing != "identity":
        raise ConfigError(
            f"{model.name} is under an intervention ({model.doing}); sweeps examine the network itself: "
            "model.untouched().sweep(...)"
        )


def images_wanted(model: Any, images: Given, n: int | None, ablation: str) -> int:
    """How many images `sweep` examines a model on, see `images.number_wanted`."""
    others = references(ablation, 1) > 0
    return number_wanted(model, images, n, IMAGES, least=MIN_IMAGES, with_others=others)


def references(ablation: str, n: int) -> int:
    """How many images `sweep` takes for replacements."""
    return 0 if ablation == "zero" else n


def images_and_set(
    model: Any, images: Given, n: int, timesteps: int, seed: int, reference: int, *, brief: bool = False
) -> tuple[EvalImages, EvalSet]:
    """The images that a `Model` is examined on, and these with timesteps even in log-SNR and their noise.

    Args:
      images, brief: see `images.eval_images`.
      n, timesteps, reference: how many images, timesteps, and images for replacements.
      seed: of the noise.
    """
    n, timesteps, seed = _checked(n, timesteps, seed)
    prepared = eval_images(model, images, n, reference, brief=brief)
    count, different = len(prepared.scored), len({image.tobytes() for image in np.asarray(prepared.scored)})
    if different < count and prepared.scored_condition is None:
        text = "%d images, but only %d are different: intervals and p take them for %d"
        logging.warning(text, count, different, count)
    examined = timesteps_by_log_snr(model.denoiser.schedule, timesteps)
    key = keys.stream(jax.random.key(seed), "scored noise")
    return prepared, prepared.scored_set(examined, key)


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.round({"delta_loss": 2, "low": 2, "high": 2, "p": 4})
