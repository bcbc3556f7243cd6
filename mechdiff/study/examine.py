"""One model examined from end to end: inputs, mean activations, sweep, attention; all of it saved.

A results folder holds one sub-folder per subject:
  subject.json     what it is: config, training record, what its inputs are
  samples.png      pictures it draws, if any came with it
  sweep.zarr       `sweeps.ablation_sweep`; its pieces are collected in sweep/
  attention.zarr   `activations.attention_stats`
The report is made from these files alone.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, SweepConfig, to_dict
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.load import load_denoiser
from mechdiff.storage import files, labelled, locks
from mechdiff.study.inputs import (
    EvalImages,
    replacement_values,
)
from mechdiff.sweeps import activations
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution.forecast import print_memory_forecast


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What was examined, for those who go on: the subject, how it was trained, and its pictures."""

    denoiser: Denoiser
    trained: ExperimentConfig
    given: EvalImages


def examine(
    name: str,
    model: Path,
    inputs: Callable[[Denoiser, ExperimentConfig], EvalImages],
    config: SweepConfig,
    seed: int,
    folder: Path,
) -> Analysis:
    """Everything about one trained model, saved in `folder`; finished pieces of a sweep are not done again.

    Several processes may examine one model into one `folder`: they share the sweep.

    Args:
      name: shown in the report.
      model: exported folder, see `checkpoint.export_model`.
      inputs: gives the pictures to examine it on.
      seed: of the noise.
    """
    denoiser, trained, record = load_denoiser(model, name)
    print_memory_forecast(denoiser, config)
    given = inputs(denoiser, trained)
    files.ensure_writable(folder)
    facts = {"inputs": given.label, "seed": seed, "trained_on": trained.data.name}
    sheet = model / "samples.png"  # a model of others may have come without
    about = {"name": name, "config": to_dict(trained), "record": record, "samples": sheet.is_file(), **facts}
    files.write_json(folder / "subject.json", about)
    (folder / "study.json").unlink(missing_ok=True)  # of an earlier run; `study` writes it anew
    if sheet.is_file():
        files.write_atomic(folder / "samples.png", sheet.read_bytes())

    timesteps = timesteps_by_log_snr(denoiser.schedule, config.timesteps)
    root = jax.random.key(seed)
    replacements = replacement_values(denoiser, given, timesteps, root, config, given.swept)
    noise = keys.stream(root, "scored noise")
    swept = ablation_sweep(
        denoiser,
        EvalSet(given.swept, timesteps, noise),
        folder / "sweep",
        config=config,
        replacements=replacements,
        facts=facts,
    )
    attention = activations.attention_stats(denoiser, EvalSet(given.swept, timesteps, noise))
    with locks.lock(folder, wait=True):  # every process that shares the sweep comes here, with equal results
        seen = attention.assign_attrs(denoiser=name, **facts).assign_coords(given.labels)
        labelled.replace(folder / "attention.zarr", seen)
        labelled.replace(folder / "sweep.zarr", swept.assign_coords(given.labels))
    return Analysis(denoiser, trained, given)
