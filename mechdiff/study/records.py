"""A results folder as records: what was saved, checked, and the damage computed from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.analysis.effects import Effects
from mechdiff.core.config import ExperimentConfig, from_dict
from mechdiff.core.errors import CheckpointError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.unet import count_parameters
from mechdiff.storage import files, labelled
from mechdiff.sweeps.activations import over_many_keys

STATISTICS = ("entropy", "normalized_entropy", "mutual_information", "distance", "identity_mass")
RECORD = ("steps", "images", "levels", "test_loss", "train_loss", "memorization", "log", "manifest")
_SETS = {
    "synthetic": "synthetic faces",
    "celeba": "CelebA faces",
    "tfds": "CelebA faces (TFDS)",
    "unknown": "pictures that its files do not name",
}


@dataclass(frozen=True)
class Network:
    """One examined network: what it was trained on, its training seed, and its results.

    Attributes:
      data: `synthetic`, `celeba`, ...; `level`: rung of the ladder of synthetic faces.
      sweep, attention: of `sweeps.ablation_sweep` and `activations.attention_stats`.
      control, control_attention: the same of an untrained network, on some of the pictures.
      activity, roles, circuits, random_sets: of `study`, circuits by kind of ablation; absent where not asked
        for.
      steps: of training: there may be several snapshots of one training, of which the last counts.
    """

    name: str
    data: str
    complexity: int
    seed: int
    sweep: xr.Dataset
    attention: xr.Dataset
    control: xr.Dataset | None = None
    control_attention: xr.Dataset | None = None
    activity: xr.Dataset | None = None
    roles: xr.Dataset | None = None
    circuits: Mapping[str, xr.Dataset] = field(default_factory=dict)
    random_sets: xr.Dataset | None = None
    steps: int = 0

    @property
    def units(self) -> stats.Units:
        """What of the images is resampled: people where they are known, else images."""
        return stats.units_of(self.sweep)

    @property
    def people(self) -> int:
        """People on the pictures; 0 where that is not known."""
        return self.units.people

    @property
    def images(self) -> int:
        """Images scored at every level: what is resampled."""
        return self.sweep.sizes["image"]

    @property
    def images_total(self) -> int:
        """Different pictures in all: more, where levels had their own."""
        return self.sweep.attrs.get("images_total", self.images)


@dataclass(frozen=True)
class ExaminedModel:
    """One examined model.

    Attributes:
      name, inputs, seed: of the model; what it was examined on; seed of the noise.
      config, record: how it was trained, and how that went; entries that were not saved are None.
      network: the same with its results, as claims are tested on it.
      samples: PNG bytes of pictures it draws; empty if none came with it.
    """

    name: str
    inputs: str
    seed: int
    config: ExperimentConfig
    record: dict
    network: Network
    samples: bytes

    @property
    def sweep(self) -> xr.Dataset:
        """As `sweeps.ablation_sweep` makes it."""
        return self.network.sweep

    @property
    def attention(self) -> xr.Dataset:
        """As `activations.attention_stats` makes it."""
        return self.network.attention

    @cached_property
    def damages(self) -> dict[str, Effects]:
        """Kind of ablation -> its damage, with intervals over images."""
        ablations = [str(ablation) for ablation in self.sweep["ablation"].values]
        return {ablation: effects.measure(self.sweep, ablation) for ablation in ablations}

    @property
    def own_samples(self) -> bool:
        """Whether it was examined on pictures that it drew itself."""
        return "own samples" in self.inputs

    @property
    def data(self) -> str:
        """What it was trained on, for a reader."""
        data = self.config.data
        rung = f" (complexity level {data.complexity})" if data.name == "synthetic" else ""
        return _SETS.get(data.name, data.name) + rung

    @property
    def images(self) -> int:
        """Images scored."""
        return self.sweep.sizes["image"]

    @property
    def lead(self) -> Effects:
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


def read(folder: Path) -> tuple[dict, list[ExaminedModel]]:
    """The manifest of a results folder, and its subjects in the order of their names.

    Raises:
      DataError, CheckpointError: something is absent, damaged or unfinished.
    """
    manifest = files.read_json(folder / "manifest.json")
    found = sorted(path.parent for path in (folder / "subjects").glob("*/subject.json"))
    if not found:
        raise CheckpointError(f"no examined models in {folder / 'subjects'}; run experiments.reproduce first")
    return manifest, [_subject(path) for path in found]


def _subject(folder: Path) -> ExaminedModel:
    about = files.read_json(folder / "subject.json")
    absent = sorted({"name", "inputs", "seed", "config", "record"} - set(about))
    if absent:
        lacks = f"lacks {', '.join(absent)}"
        raise CheckpointError(f"{folder / 'subject.json'} {lacks}; run experiments.reproduce again")
    sweep, attention = (labelled.read(folder / f"{part}.zarr") for part in ("sweep", "attention"))
    _check(folder / "sweep.zarr", sweep, ("loss", "clean_loss", "change"))
    _check(folder / "attention.zarr", attention, STATISTICS)
    attention = over_many_keys(attention)  # of results before such heads were left out
    sheet = folder / "samples.png"
    with files.plain_errors(sheet):
        samples = sheet.read_bytes() if about.get("samples", True) else b""
    config = from_dict(about["config"])
    data = config.data
    which = about["name"], data.name, data.complexity, config.seed
    return ExaminedModel(
        name=about["name"],
        inputs=about["inputs"],
        seed=about["seed"],
        config=config,
        record=dict.fromkeys(RECORD) | about["record"],
        network=Network(
            *which, sweep, attention, steps=int(about["record"].get("steps") or 0), **_studied(folder)
        ),
        samples=samples,
    )


def _studied(folder: Path) -> dict:
    """What `study` found out besides, as far as it was asked to."""
    asked = folder / "study.json"
    names = files.read_json(asked)["results"] if asked.exists() else []
    found = {name: labelled.read(folder / f"{name}.zarr") for name in names}
    circuits = {
        name.removeprefix("circuit_"): found.pop(name) for name in names if name.startswith("circuit_")
    }
    return found | {"circuits": circuits}


def _check(path: Path, found: xr.Dataset, wanted: tuple[str, ...]) -> None:
    absent = [name for name in wanted if name not in found]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; delete that folder and run again")
