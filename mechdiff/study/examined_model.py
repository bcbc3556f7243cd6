"""An examined model with its description, as the report shows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff.analysis import effects
from mechdiff.analysis.effects import Effects
from mechdiff.core.config import ExperimentConfig
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.factories import FUNCTION_FACTS
from mechdiff.models.unet import count_parameters
from mechdiff.study.network_results import NetworkResults

_SETS = {
    "synthetic": "synthetic faces",
    "gaussian": "Gaussian images",
    "celeba": "CelebA faces",
    "tfds": "CelebA faces (TFDS)",
    "folder": "images of a folder",
    "unknown": "images that its files do not name",
}


@dataclass(frozen=True)
class ExaminedModel:
    """A model that was examined, read from its results without the network: what the report shows of it.

    Attributes:
      name: of the model.
      inputs: description of the images it was examined on.
      seed: of the noise.
      config, record: training config and training record; entries that were not saved are None.
      results: what was measured, as claims are tested on it.
      samples: PNG bytes of images sampled from it; empty if none came with it.
      images_facts: name, digest, count and preprocessing of the images, see `eval_images.EvalImages`; empty
        in older results.
      load_check: of `load_check.LoadCheck.to_dict`; empty in older results.
      examples: of `examples.save`; None in older and in packed results.
    """

    name: str
    inputs: str
    seed: int
    config: ExperimentConfig
    record: dict
    results: NetworkResults
    samples: bytes
    images_facts: Mapping[str, Any] = field(default_factory=dict)
    load_check: Mapping[str, Any] = field(default_factory=dict)
    examples: xr.Dataset | None = None

    @property
    def sweep(self) -> xr.Dataset:
        """As `ablation.ablation_sweep` makes it."""
        return self.results.sweep

    @property
    def attention(self) -> xr.Dataset:
        """As `activations.attention_stats` makes it."""
        return self.results.attention

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
        others = self.images_facts.get("count", np.nan) - self.results.images_total
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
