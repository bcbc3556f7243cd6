"""Examines one network of a study and packs its results (`experiments.examine`, `experiments.study`)."""

from collections.abc import Callable
from pathlib import Path

from mechdiff.core.config import ExperimentConfig, to_dict
from mechdiff.models.load import model_folder
from mechdiff.storage import manifest
from mechdiff.study import circuit_results, examine, further_results, packing
from mechdiff.study.eval_images import EvalImages


def packed_path(workdir: Path, name: str) -> Path:
    """Path of a network's packed results in the folder of its examination."""
    return workdir / packing.CELLS / f"{name}.zip"


def examine_and_pack(
    name: str,
    model: str,
    choose: Callable[..., EvalImages],
    config: ExperimentConfig,
    workdir: Path,
    *,
    samples: bool = False,
) -> Path:
    """Examines a trained network, resuming an earlier examination, and packs the results, with a manifest.

    Args:
      name: of the network in results.
      model: folder of a training, or RUN@STEP.
      choose: gives its images, such as a `choosing.ImageChoice`.
      samples: keep the sheet of samples in the packed file.

    Returns:
      The packed file, the last thing that is written.

    Raises:
      ConfigError: what circuits or pairs take is not there, before anything is computed; or as of
        `examine.examine`.
    """
    circuit_results.check(config)  # before hours of sweeping
    choose = circuit_results.checking(choose, config)
    folder, path = workdir / "subjects" / name, packed_path(workdir, name)
    examined = examine.examine(
        name, model_folder(model), choose, config.sweep, config.seed, folder, studied=True
    )
    further_results.run_study(examined, config, folder)
    manifest.write(workdir, manifest.run_manifest(to_dict(config), models=[name]))
    packing.pack(folder, path, samples=samples)
    return path
