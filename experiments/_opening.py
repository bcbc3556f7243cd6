"""Trained models, the images that they are examined on, and their results: as the flags of launchers say."""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import xarray as xr
from absl import flags

from mechdiff import stats
from mechdiff.core import keys
from mechdiff.core.config import DRAWN, ExperimentConfig, to_dict
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import load
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import files, labelled
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import choosing, inputs, load_check
from mechdiff.study.condition_sources import ConditionSources

from . import _flags

# Settings of sweeps that launchers of one network follow: for the set that is examined, which is drawn or
# read together with the reference images, for its blocks and precision.
FOLLOWED = ("images", "reference_images", "timesteps", "image_block", "nested", "precision")


class Opened(NamedTuple):
    """A trained model, how it was trained, its images, and those of them that it is examined on."""

    denoiser: Examinable
    trained: ExperimentConfig
    images: inputs.EvalImages
    eval_set: EvalSet


def opened(
    config: ExperimentConfig,
    workdir: Path,
    model: str | Path,
    celeba: str | None,
    images: str | None = None,
    *,
    name: str = "",
    nested: bool = False,
    check: Callable[[Examinable], object] = lambda denoiser: None,
) -> Opened:
    """A trained model and what it is examined on, by the settings `sweeps` and `seed`.

    Args:
      model: see `load.load_denoiser`.
      celeba, images: where images lie; see `choosing.ImageChoice`.
      name: shown in results; the folder's if empty.
      nested: whether the launcher uses other images at every timestep where `sweep.nested` asks for them;
        if not, one set is taken, counted and named.
      check: refuses a network that lacks what the launcher needs, such as components of a name; called before
        images are read.
    """
    files.ensure_writable(workdir)  # before hours of computing
    config = config if nested else replace(config, sweep=replace(config.sweep, nested=False))
    if config.sweep.precision != "float32":
        where = "acts in sweeps, screens and samples; all else is in float32"
        print(f"sweep.precision={config.sweep.precision} {where}", file=sys.stderr, flush=True)
    choose = chooser(config, workdir, celeba, images)
    denoiser, trained, record = load.load_denoiser(model, name)
    load.check_stated(record, denoiser.name)
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.sweep.timesteps)
    check(denoiser)
    images_of = choose(denoiser, trained, record)
    checked = load_check.check(denoiser, images_of, record, config.seed)
    print(f"{denoiser.name}: {images_of.label}; {checked.summary}", file=sys.stderr, flush=True)
    key = keys.stream(jax.random.key(config.seed), "scored noise")
    return Opened(denoiser, trained, images_of, images_of.scored_set(timesteps, key))


def check_names(names: Sequence[str]) -> None:
    """Refuses models of one name in results, where the later would take the place of the earlier.

    Args:
      names: of all models, as the launcher calls their results.

    Raises:
      flags.Error: two are alike.
    """
    alike = [name for i, name in enumerate(names) if name in names[:i]]
    if alike:
        raise flags.Error(
            f"two models are called alike, {alike[0]}, and so would be their results; rename one run's folder"
        )


def without_references(config: ExperimentConfig) -> ExperimentConfig:
    """The config of a launcher that takes no reference images, as zero ablation takes none."""
    return replace(config, sweep=replace(config.sweep, ablations=("zero",)))


def chooser(
    config: ExperimentConfig, workdir: Path, celeba: str | None, images: str | None, mixed: bool = False
) -> Callable[..., inputs.EvalImages]:
    """A `choosing.ImageChoice`, with the statements of --classes, --conditions and --set on the images.

    Args:
      mixed: models of several data sets are examined by one command, and --celeba is for those that it fits;
        else a line on stderr says where it has no effect.
    """
    classes, conditions = (flags.FLAGS[name].value for name in ("classes", "conditions"))  # unparsed in tests
    sources = ConditionSources(classes=classes, conditions=conditions)
    stated = [name.removeprefix(_flags.PREPROCESSING) for name in _flags.settings_given()]
    choice = choosing.ImageChoice(config, celeba, workdir / "cache", images, sources, stated)
    return choice if mixed else functools.partial(_chosen, choice)


def _chosen(
    choice: choosing.ImageChoice, denoiser: Examinable, trained: ExperimentConfig, record: dict | None = None
) -> inputs.EvalImages:
    """Images of a model; a line on stderr if --celeba has no effect on them."""
    if choice.celeba and trained.data.name in DRAWN:
        what = f"{denoiser.name}: it is examined on {trained.data.name} images, which are drawn"
        print(f"warning: --celeba={choice.celeba} has no effect on {what}", file=sys.stderr, flush=True)
    return choice(denoiser, trained, record)


def scored(images: inputs.EvalImages, result: xr.Dataset) -> str:
    """How many images a result is of, and which; a caution where they are few."""
    units = stats.units_of(result)
    return f"{len(images.scored)} images ({images.label}){stats.few_images(units.count, units.effective)}"


def save(workdir: Path, name: str, result: xr.Dataset, config: ExperimentConfig, **facts: object) -> None:
    """Writes WORKDIR/NAME.zarr, and its manifest as NAME.json."""
    labelled.replace(workdir / f"{name}.zarr", result)
    files.write_json(workdir / f"{name}.json", {"manifest": run_manifest(to_dict(config), **facts)})
