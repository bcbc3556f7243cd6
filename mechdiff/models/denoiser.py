"""The denoiser that is examined: a network with its parameters, schedule and identity intervention."""

import dataclasses

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.record import Intervention
from mechdiff.storage import digests


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A denoiser to be examined.

    Attributes:
      name: shown in results.
      unet, schedule: its configuration.
      params, identity: as `init_unet` makes them (parameters trained).
    """

    name: str
    unet: UNetConfig
    schedule: NoiseSchedule
    params: PyTree
    identity: Intervention

    @property
    def network(self) -> tuple[UNetConfig, PyTree, Intervention, NoiseSchedule]:
        """What every function that runs it takes first."""
        return self.unet, self.params, self.identity, self.schedule

    def digests(self) -> dict:
        """What of it decides numbers, JSON-ready."""
        return {
            "params": digests.digest_arrays(self.params),
            "unet": dataclasses.asdict(self.unet),
            "schedule": digests.digest_arrays(self.schedule.log_snr),
            "precision": devices.precision(),
        }
