"""A results folder as records: what was saved, checked, and the damage computed from it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import effects, files, results
from mechdiff.config import ExperimentConfig, from_dict
from mechdiff.effects import Damage
from mechdiff.errors import CheckpointError
from mechdiff.schedules import make_schedule
from mechdiff.unet import count_parameters
from mechdiff.verdicts import Network

STATISTICS = ("entropy", "normalised_entropy", "mutual_information", "distance", "identity_mass")
RECORD = ("steps", "images", "levels", "test_loss", "train_loss", "memorisation", "log", "manifest")
_SETS = {
    "synthetic": "synthetic faces",
    "celeba": "CelebA faces",
    "tfds": "CelebA faces (TFDS)",
    "unknown": "pictures that its files do not name",
}


@dataclass(frozen=True)
class Subject:
    """One examined model.

    Attributes:
      name, inputs, seed: of the model; what it was examined on; seed of the noise.
      config, record: how it was trained, and how that went; entries that were not saved are None.
      sweep, attention: as `sweep.teacher_forced` and `capture.attention_stats` make them.
      damages: kind of ablation -> its damage.
      samples: PNG bytes of pictures it draws; empty if none came with it.
    """

    name: str
    inputs: str
    seed: int
    config: ExperimentConfig
    record: dict
    sweep: xr.Dataset
    attention: xr.Dataset
    damages: dict[str, Damage]
    samples: bytes

    @property
    def own_samples(self) -> bool:
        """Whether it was examined on pictures that it drew itself."""
        return "own samples" in self.inputs

    @property
    def data(self) -> str:
        """What it was trained on, for a reader."""
        data = self.config.data
        rung = f" (complexity level {data.level})" if data.name == "synthetic" else ""
        return _SETS.get(data.name, data.name) + rung

    @property
    def network(self) -> Network:
        """What claims are tested on."""
        data = self.config.data
        return Network(self.name, data.name, data.level, self.config.seed, self.sweep, self.attention)

    @property
    def images(self) -> int:
        """Images scored."""
        return self.sweep.sizes["image"]

    @property
    def lead(self) -> Damage:
        """Damage of the kind that figures show first: `mean`, which stays nearest to what the net knows."""
        return self.damages.get("mean") or next(iter(self.damages.values()))

    @cached_property
    def parameters(self) -> int:
        """Parameters of the network."""
        return count_parameters(self.config.unet)

    @cached_property
    def log_snr(self) -> Float[np.ndarray, " steps"]:
        """log-SNR of every timestep of its schedule."""
        return np.asarray(make_schedule(self.config.diffusion).log_snr, np.float64)


def read(folder: Path) -> tuple[dict, list[Subject]]:
    """The manifest of a results folder, and its subjects in the order of their names.

    Raises:
      DataError, CheckpointError: something is absent, damaged or unfinished.
    """
    manifest = files.read_json(folder / "manifest.json")
    found = sorted(path.parent for path in (folder / "subjects").glob("*/subject.json"))
    if not found:
        raise CheckpointError(f"no examined models in {folder / 'subjects'}; run experiments.reproduce first")
    return manifest, [_subject(path) for path in found]


def _subject(folder: Path) -> Subject:
    about = files.read_json(folder / "subject.json")
    absent = sorted({"name", "inputs", "seed", "config", "record"} - set(about))
    if absent:
        lacks = f"lacks {', '.join(absent)}"
        raise CheckpointError(f"{folder / 'subject.json'} {lacks}; run experiments.reproduce again")
    sweep, attention = (results.read(folder / f"{part}.zarr") for part in ("sweep", "attention"))
    _check(folder / "sweep.zarr", sweep, ("loss", "clean_loss", "change"))
    _check(folder / "attention.zarr", attention, STATISTICS)
    sheet = folder / "samples.png"
    with files.plain_errors(sheet):
        samples = sheet.read_bytes() if about.get("samples", True) else b""
    return Subject(
        name=about["name"],
        inputs=about["inputs"],
        seed=about["seed"],
        config=from_dict(about["config"]),
        record=dict.fromkeys(RECORD) | about["record"],
        sweep=sweep,
        attention=attention,
        damages={str(kind): effects.measure(sweep, str(kind)) for kind in sweep["kind"].values},
        samples=samples,
    )


def _check(path: Path, found: xr.Dataset, wanted: tuple[str, ...]) -> None:
    absent = [name for name in wanted if name not in found]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; delete that folder and run again")
