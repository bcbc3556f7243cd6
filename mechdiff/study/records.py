"""A results folder as records: what was saved, checked, and the effects computed from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.analysis.effects import Effects
from mechdiff.core.config import ExperimentConfig, from_dict
from mechdiff.core.errors import CheckpointError, shorten
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.factories import FUNCTION_FACTS
from mechdiff.models.unet import count_parameters
from mechdiff.storage import files, image_grid, labelled
from mechdiff.study import packing
from mechdiff.sweeps.activations import over_many_keys

STATISTICS = ("entropy", "normalized_entropy", "mutual_information", "distance", "identity_mass")
GO_ON = "run the command that was interrupted again: it goes on"
RECORD = ("steps", "images", "levels", "test_loss", "train_loss", "memorization", "log", "manifest")
_SETS = {
    "synthetic": "synthetic faces",
    "gaussian": "Gaussian images",
    "celeba": "CelebA faces",
    "tfds": "CelebA faces (TFDS)",
    "folder": "images of a folder",
    "unknown": "images that its files do not name",
}


@dataclass(frozen=True, eq=False)
class Network:
    """One examined network: its training data, training seed and results.

    Attributes:
      data: `synthetic`, `celeba`, ...; of images with random phases, `celeba scrambled`.
      complexity: of synthetic faces, 0 to 4.
      seed: of training.
      sweep, attention: of `sweeps.ablation_sweep` and `activations.attention_stats`.
      control, control_attention: the same of an untrained network, on some of the images.
      activity, roles, circuits, random_sets, pairs: of `further_results.run_study`, circuits by ablation;
        absent where the study did not include them.
      steps: of training. Of several snapshots of one training, claims use the last.
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
    pairs: xr.Dataset | None = None
    steps: int = 0

    @property
    def units(self) -> stats.Units:
        """The units of resampling: people where they are known, else images."""
        return stats.units_of(self.sweep)

    @property
    def people(self) -> int:
        """Number of people in the images; 0 where that is not known."""
        return self.units.people

    @property
    def images(self) -> int:
        """Images scored at every timestep."""
        return self.sweep.sizes["image"]

    @property
    def images_total(self) -> int:
        """Different images in all: more than `images` where every timestep has images of its own."""
        return self.sweep.attrs.get("images_total", self.images)


@dataclass(frozen=True)
class ExaminedModel:
    """One examined model.

    Attributes:
      name: of the model.
      inputs: description of the images it was examined on.
      seed: of the noise.
      config, record: training config and training record; entries that were not saved are None.
      network: its results, as claims are tested on it.
      samples: PNG bytes of images sampled from it; empty if none came with it.
      images_facts: name, digest, count and preprocessing of the images, see `inputs.EvalImages.facts`; empty
        in older results.
      load_check: of `load_check.LoadCheck.to_dict`; empty in older results.
      examples: of `examples.save`; None in older and in packed results.
    """

    name: str
    inputs: str
    seed: int
    config: ExperimentConfig
    record: dict
    network: Network
    samples: bytes
    images_facts: Mapping[str, Any] = field(default_factory=dict)
    load_check: Mapping[str, Any] = field(default_factory=dict)
    examples: xr.Dataset | None = None

    @property
    def sweep(self) -> xr.Dataset:
        """As `sweeps.ablation_sweep` makes it."""
        return self.network.sweep

    @property
    def attention(self) -> xr.Dataset:
        """As `activations.attention_stats` makes it."""
        return self.network.attention

    @cached_property
    def increases(self) -> dict[str, Effects]:
        """Ablation -> effects of all components, with intervals over images."""
        ablations = [str(ablation) for ablation in self.sweep["ablation"].values]
        return {ablation: effects.measure(self.sweep, ablation) for ablation in ablations}

    @property
    def own_samples(self) -> bool:
        """Whether it was examined on images that it sampled itself."""
        return "own samples" in self.inputs

    @property
    def examined_on(self) -> str:
        """`inputs`, the same for all networks that were examined on their own samples, each on others."""
        return "own samples" if self.own_samples else self.inputs

    @property
    def data(self) -> str:
        """The training data in words."""
        data = self.config.data
        complexity = f" (complexity {data.complexity})" if data.name == "synthetic" else ""
        scrambled = ", phases scrambled" if data.preprocessing.phases == "random" else ""
        return _SETS.get(data.name, data.name) + complexity + scrambled

    @property
    def images(self) -> int:
        """Images scored."""
        return self.sweep.sizes["image"]

    @property
    def reference_images(self) -> int | None:
        """Images that replacements were made of; None: not known."""
        others = self.images_facts.get("count", np.nan) - self.network.images_total
        return self.sweep.attrs.get("reference_images", None if np.isnan(others) else others)

    @property
    def lead(self) -> Effects:
        """Effects under the ablation that figures show first: `mean` if it was swept, else the first."""
        return self.increases.get("mean") or next(iter(self.increases.values()))

    @property
    def function(self) -> dict[str, Any] | None:
        """Facts of a network that a user's function made (`models.factories.facts`); None: a UNet of ours."""
        return self.record.get(FUNCTION_FACTS)

    @cached_property
    def architecture(self) -> str:
        """Kind of network, size of its images and number of its parameters, for a reader."""
        if self.function:
            size, parameters = self.function["image_shape"], self.function["parameters"]
            kind = f"JAX function of {self.function['name']}, {' × '.join(map(str, size))} numbers an image"
            return f"{kind}, {parameters:,} parameters"
        unet = self.config.unet
        return f"UNet, {unet.image_size} × {unet.image_size} pixels, {self.parameters:,} parameters"

    @cached_property
    def noise_schedule(self) -> str:
        """Name and number of timesteps of its noise schedule, for a reader."""
        if self.function:
            return f"of the function, T = {len(self.log_snr):,}"
        return f"{self.config.diffusion.schedule}, T = {self.config.diffusion.steps:,}"

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return self.function["parameters"] if self.function else count_parameters(self.config.unet)

    @cached_property
    def log_snr(self) -> Float[np.ndarray, " steps"]:
        """log-SNR of every timestep of its schedule."""
        if self.function:
            return np.asarray(self.function["log_snr"], np.float64)
        return np.asarray(make_schedule(self.config.diffusion).log_snr, np.float64)


def read(folder: Path) -> tuple[dict, list[ExaminedModel]]:
    """The manifest of a results folder, and its models sorted by name, snapshots of one run by step.

    Raises:
      DataError, CheckpointError: a file is absent, damaged or unfinished.
    """
    manifest = files.read_json(folder / "manifest.json")
    folders = {path.parent.name: path.parent for path in (folder / "subjects").glob("*/subject.json")}
    shipped = {path.stem: path for path in (folder / packing.CELLS).glob("*.zip")}
    if not folders and not shipped:
        raise CheckpointError(
            f"no examined models in {folder / 'subjects'}; `sweep` and `reproduce` make some (--workdir: "
            "their folder)"
        )
    names = sorted({*folders, *shipped}, key=_by_step)
    return manifest, [
        _examined(folders[name]) if name in folders else _shipped(shipped[name]) for name in names
    ]


def _by_step(name: str) -> tuple[list[str | int], float]:
    """The run and the step of a model RUN@STEP; seed 2 comes before seed 10, the end of training last."""
    run, _, step = name.partition("@")
    parts = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run)]
    return parts, float(step) if step.isdecimal() else float("inf")


def _examined(folder: Path) -> ExaminedModel:
    about = files.read_json(folder / "subject.json")
    _check_facts(folder / "subject.json", about)
    sweep, attention = (labelled.read(folder / f"{part}.zarr") for part in ("sweep", "attention"))
    _check(folder / "sweep.zarr", sweep, ("loss", "clean_loss", "change"))
    _check(folder / "attention.zarr", attention, STATISTICS)
    _check_same(folder, about, sweep, attention)
    attention = over_many_keys(attention)  # older results hold heads over one key
    sheet = folder / image_grid.SHEET
    with files.plain_errors(sheet):
        samples = sheet.read_bytes() if about.get("samples", True) else b""
    model = _model(about, {"sweep": sweep, "attention": attention, **_studied(folder)}, samples)
    shown = folder / "examples.zarr"
    return replace(model, examples=labelled.read(shown)) if shown.exists() else model


def _shipped(path: Path) -> ExaminedModel:
    """A model from a file of `packing.pack`."""
    about, results, members = packing.unpack(path)
    _check_facts(path, about)
    results["attention"] = over_many_keys(results["attention"])
    return _model(about, _with_circuits(results), members.get(image_grid.SHEET, b""))


def _check_facts(path: Path, about: dict) -> None:
    absent = sorted({"name", "inputs", "seed", "config", "record"} - set(about))
    if absent:
        raise CheckpointError(
            f"{path} lacks {', '.join(absent)}; make it again (mechdiff reproduce or examine)"
        )
    if about.get("unfinished"):
        raise CheckpointError(f"{path.parent} is unfinished; {GO_ON}")


def _check_same(folder: Path, about: dict, *results: xr.Dataset) -> None:
    """Refuses results of other images or noise than the description: an interrupted run of a version before
    `unfinished` was noted. Results that don't say what they are of are taken as they are."""
    for fact in ("inputs", "seed", "trained_on"):
        for result in results:
            if fact in about and result.attrs.get(fact, about[fact]) != about[fact]:
                raise CheckpointError(
                    f"{folder} is unfinished: its numbers are of {fact} {shorten(result.attrs[fact])}, but "
                    f"subject.json says {shorten(about[fact])}; {GO_ON}"
                )


def _model(about: dict, results: dict, samples: bytes) -> ExaminedModel:
    config = from_dict(about["config"])
    data = config.data
    return ExaminedModel(
        name=about["name"],
        inputs=about["inputs"],
        seed=about["seed"],
        config=config,
        record=dict.fromkeys(RECORD) | about["record"],
        network=Network(
            name=about["name"],
            data=f"{data.name} scrambled" if data.preprocessing.phases == "random" else data.name,
            complexity=data.complexity,
            seed=config.seed,
            steps=int(about["record"].get("steps") or 0),
            **results,
        ),
        samples=samples,
        images_facts=about.get("images", {}),
        load_check=about.get("load_check", {}),
    )


def _studied(folder: Path) -> dict:
    """Results of `further_results.run_study`, those that study.json lists."""
    path = folder / "study.json"
    names = files.read_json(path)["results"] if path.exists() else []
    return _with_circuits({name: labelled.read(folder / f"{name}.zarr") for name in names})


def _with_circuits(results: dict[str, xr.Dataset]) -> dict:
    """Results by field of `Network`: those named circuit_ABLATION together, by ablation."""
    circuits = {
        name.removeprefix("circuit_"): result
        for name, result in results.items()
        if name.startswith("circuit_")
    }
    others = {name: result for name, result in results.items() if not name.startswith("circuit_")}
    return others | {"circuits": circuits}


def _check(path: Path, dataset: xr.Dataset, required: tuple[str, ...]) -> None:
    absent = [name for name in required if name not in dataset]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; delete that folder and run again")
