"""What a reader of foreign checkpoints returns."""

import dataclasses

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import NoiseSchedule, make_schedule


@dataclasses.dataclass(frozen=True)
class Imported:
    """A foreign model in our words.

    Attributes:
      unet, diffusion: its configuration.
      params: as `init_unet` makes them, float32, on the host.
      layout: `diffusers` or `guided-diffusion`.
      dtype: the widest of its stored numbers; keeping them in it loses nothing.
      notes: what of the folder has no bearing here, in sentences for a reader.
    """

    unet: UNetConfig
    diffusion: DiffusionConfig
    params: PyTree
    layout: str
    dtype: str
    notes: tuple[str, ...] = ()

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels it was trained with."""
        return make_schedule(self.diffusion)
