"""The results of one examined network, as claims are tested on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import xarray as xr

from mechdiff import stats

STATISTICS = ("entropy", "normalized_entropy", "mutual_information", "distance", "identity_mass")


@dataclass(frozen=True, eq=False)
class NetworkResults:
    """What was measured on one network, with its training data and seed: all that claims are tested on.

    The report needs more, the description of the network and its images: `examined_model.ExaminedModel`.

    Attributes:
      data: `synthetic`, `celeba`, ...; of images with random phases, `celeba scrambled`.
      complexity: of synthetic faces, 0 to 4.
      seed: of training.
      sweep: of `ablation.ablation_sweep`.
      attention: of `activations.attention_stats`, at least `STATISTICS`.
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
