"""One model examined from end to end: inputs, replacements, ablation sweep, attention; saved in a folder.

A results folder holds one sub-folder per model, `subjects/NAME`:
  subject.json     name, config, training record, description of the images, and how well they are denoised;
                   `unfinished` until all that follows, and what `further_results` adds, is of these
  samples.png      images sampled from the model, if any came with it
  sweep.zarr       `ablation.ablation_sweep` with effects and intervals (`saved_effects`) and, where it is
                   known, the loss of the best denoiser (`floor`); its pieces are collected in sweep/
  attention.zarr   `activations.attention_stats`
  examples.zarr    images for the eye, see `examples`; none of a network whose images can't be shown
The report is made from these files alone.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import xarray as xr

from mechdiff.analysis.saved_effects import with_effects
from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, SweepConfig, to_dict
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import factories
from mechdiff.models.denoiser import Examinable
from mechdiff.models.load import check_stated, load_denoiser, model_folder
from mechdiff.storage import files, image_grid, labelled, locks, run_log
from mechdiff.study import examples, floor, load_check
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.inputs import TRAINING_IMAGES
from mechdiff.study.replacement_values import replacement_values
from mechdiff.sweeps import activations
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution.forecast import print_memory_forecast


@dataclasses.dataclass(frozen=True)
class DenoiserAndImages:
    """A loaded network and the images it was examined on, which further results run, and its sweep.

    All results are in the folder, from where they are read without the network, as an
    `examined_model.ExaminedModel`.

    Attributes:
      sweep: as it was saved; another process may have put that of other settings in its place since.
    """

    denoiser: Examinable
    trained: ExperimentConfig
    images: EvalImages
    sweep: xr.Dataset


def examine(
    name: str,
    model: str | Path,
    inputs: Callable[[Examinable, ExperimentConfig, dict], EvalImages],
    config: SweepConfig,
    seed: int,
    folder: Path,
    *,
    studied: bool = False,
) -> DenoiserAndImages:
    """Examines one trained model and saves the results in `folder`; finished pieces of a sweep are reused.

    Several processes may examine one model into one `folder`: they share the sweep.

    Args:
      name: shown in the report.
      model: exported folder, or another name of it, or `module:function`; see `load.load_denoiser`.
      inputs: gives the images to examine it on, such as a `choosing.ImageChoice`.
      seed: of the noise.
      studied: whether `further_results.run_study` comes next: the results are `unfinished` until its end.

    Returns:
      What was examined, for `further_results.run_study`.
    """
    denoiser, trained, record = load_denoiser(model, name)
    check_stated(record, name)
    timesteps_by_log_snr(denoiser.schedule, config.timesteps)  # may refuse, before images are evaluated
    images = inputs(denoiser, trained, record)
    print_memory_forecast(denoiser, config)  # a line that errors about images should not follow
    checked = load_check.check(denoiser, images, record, seed)
    print(f"{name}: {checked.summary}", file=sys.stderr, flush=True)
    files.ensure_writable(folder)
    facts = {"inputs": images.label, "seed": seed, "trained_on": trained.data.name}
    about = {
        "name": name,
        "images": dict(images.facts),
        "load_check": checked.to_dict(),
        "config": to_dict(trained),
        **facts,
    }
    unneeded = (TRAINING_IMAGES, factories.WITH_IMAGES)  # only needed to choose images, and long
    about["record"] = {name: value for name, value in record.items() if name not in unneeded}
    sheet = model_folder(model) / image_grid.SHEET
    about["samples"] = sheet.is_file()  # imported models may have none
    # Numbers that are there may be of an earlier run, and so are the results of `further_results.run_study`.
    files.write_json(folder / "subject.json", {**about, "unfinished": True})
    (folder / "study.json").unlink(missing_ok=True)
    if about["samples"]:
        files.write_atomic(folder / image_grid.SHEET, sheet.read_bytes())
    sweep = _save_measurements(folder, denoiser, images, config, facts)
    if not studied:
        finish(folder)
    return DenoiserAndImages(denoiser, trained, images, sweep)


def finish(folder: Path) -> None:
    """Notes that the results in `folder` are whole."""
    about = files.read_record(folder / "subject.json", ())
    about.pop("unfinished", None)
    files.write_json(folder / "subject.json", about)


def _save_measurements(
    folder: Path, denoiser: Examinable, images: EvalImages, config: SweepConfig, facts: dict
) -> xr.Dataset:
    """Saves the ablation sweep, which it returns, attention and examples of the images, with the noise of the
    seed in `facts`."""
    timesteps, seed = timesteps_by_log_snr(denoiser.schedule, config.timesteps), facts["seed"]
    root = jax.random.key(seed)
    noise = keys.stream(root, "scored noise")
    eval_set = images.swept_set(timesteps, noise)
    replacements = replacement_values(denoiser, images, eval_set, root, config)
    sweep = ablation_sweep(
        denoiser,
        eval_set,
        folder / "sweep",
        config=config,
        replacements=replacements,
        facts=facts,
    )
    with run_log.progress(1, desc=f"attention of {denoiser.name}", unit="pass"):
        attention = activations.attention_stats(denoiser, eval_set)
    best = floor.best_denoiser(images, denoiser.schedule)
    facts = {**facts, "preprocessing": str(images.facts.get("preprocessing", "none"))}
    facts["reference_images"] = len(images.reference)
    with locks.lock(folder, wait=True):  # every process that shares the sweep gets here, with equal results
        attention = attention.assign_attrs(denoiser=denoiser.name, **facts).assign_coords(images.labels)
        labelled.replace(folder / "attention.zarr", attention)
        sweep = sweep.assign_attrs(facts).assign_coords(images.labels)
        if best is not None:
            sweep = floor.with_floor(sweep, best, eval_set)
        if sweep.sizes["image"] > 1:  # of a single image there is no interval
            sweep = with_effects(sweep)
        labelled.replace(folder / "sweep.zarr", sweep)
    with run_log.progress(1, desc=f"examples of {denoiser.name}", unit="pass"):
        examples.save(folder / "examples.zarr", denoiser, images, sweep, seed, noise)
    return sweep
