"""Arguments and results of the readers of foreign checkpoints."""

import dataclasses
from typing import Any, Literal

from mechdiff.core.config import DiffusionConfig, Prediction, UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import NoiseSchedule, make_schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stated:
    """The caller's statements on a model whose files leave something open; None: nothing is stated.

    A statement that contradicts a file is an error.

    Attributes:
      weights: which of several weight files: `raw`, `ema`, a variant such as `fp16`, or a file's name.
      dialect: the program whose defaults missing ADM flags get.
      noise_schedule, noise_steps, beta_start, beta_end: the noise levels.
      prediction: what the network outputs.
      rescale_timesteps: whether an ADM network is given t * 1000 / noise_steps.
      condition: where the channels of a condition are in the network's input: `last`, after the noisy image,
        or `first`.
      null_class: whether the last class of a table stands for no class.
    """

    weights: str | None = None
    dialect: Literal["guided-diffusion", "improved-diffusion"] | None = None
    noise_schedule: Literal["linear", "scaled_linear", "cosine"] | None = None
    noise_steps: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    prediction: Prediction | None = None
    rescale_timesteps: bool | None = None
    condition: Literal["last", "first"] | None = None
    null_class: bool | None = None


class _FromFiles:
    """Properties that both kinds of imported model derive from their fields."""

    layout: str
    diffusion: DiffusionConfig
    notes: tuple[str, ...]
    assumed: tuple[str, ...]
    asks: str

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the import that are saved in a model's record, JSON-ready."""
        facts = {"layout": self.layout, "notes": self.notes, "assumed": self.assumed}
        return facts | {"asks": self.asks} if self.asks else facts

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the model."""
        return make_schedule(self.diffusion)


@dataclasses.dataclass(frozen=True)
class Imported(_FromFiles):
    """A foreign model, converted to this package's UNet.

    Attributes:
      unet, diffusion: configuration of the network and of its noise.
      params: as `init_unet` returns them, float32, on the host.
      layout: `diffusers`, `guided-diffusion` or `ddim`.
      dtype: the widest type of its stored numbers; storing them in it loses nothing.
      notes: what was ignored, dropped, chosen or assumed, in sentences.
      assumed: options that are neither in a file nor stated, `option=value`.
      asks: what must be stated before the network is sampled or examined, in one line; empty: nothing.
    """

    unet: UNetConfig
    diffusion: DiffusionConfig
    params: PyTree
    layout: str
    dtype: str
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    asks: str = ""


@dataclasses.dataclass(frozen=True)
class ImportedFunction(_FromFiles):
    """A foreign model that is not a UNet of this package, but a function of its tensors with named values.

    Attributes:
      layout: its library; a key of `builders.BUILDERS`.
      options: what makes the function, JSON-ready; `image_size` and `channels` among them.
      params: its tensors by their own names, float32, on the host.
      diffusion, dtype, notes, assumed, asks: as of `Imported`.
    """

    layout: str
    options: dict[str, Any]
    params: PyTree
    diffusion: DiffusionConfig
    dtype: str
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    asks: str = ""
