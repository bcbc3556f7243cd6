"""Planted networks: denoisers whose responsible components are known, with the images to score them on."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import Images
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.validation.planted import weights
from mechdiff.validation.planted.gain import balanced_gain, best_gain
from mechdiff.validation.planted.hidden_plants import HIDDEN_PLANTS
from mechdiff.validation.planted.plants import SHOWN, Plant
from mechdiff.validation.planted.wiring import STEPS, Pair, Quarter

PLANTS: dict[str, Plant] = {
    **SHOWN,
    **HIDDEN_PLANTS,
}  # random draws depend on the place in this table: append only
GAINS = {"best": best_gain, "balanced": balanced_gain}
LOG_SNR = (3.0, 1.5, 0.0, -1.5, -3.0)  # of the timesteps scored: neither nearly clean nor nearly pure noise
SIZES = {"small": (8, 32, 4), "large": (16, 48, 6)}  # side, width, heads: 36 and 44 components
IMAGES = {"small": 16, "large": 8}  # scored; with 8, small networks would show what means should hide


@dataclasses.dataclass(frozen=True)
class PlantedNetwork:
    """A denoiser whose responsible components are known.

    Attributes:
      name, size, instance: which one.
      denoiser: the network with its schedule, parameters and identity intervention.
      images, others: to score on, and to take replacements from.
      timesteps: to score at.
      signs: planted component -> 1 if ablating it raises the loss, -1 if it lowers the loss.
      pairs: two components each that act jointly, and the sign of their interaction (positive: redundant).
      window: half-open interval of t outside of which the planted components have no effect; or None.
      quarter: row and column of the quarter of the image outside of which they have no effect; or None.
    """

    name: str
    size: str
    instance: int
    denoiser: Denoiser
    images: Images
    others: Images
    timesteps: Int[np.ndarray, " timesteps"]
    signs: dict[str, int]
    pairs: tuple[Pair, ...] = ()
    window: tuple[int, int] | None = None
    quarter: Quarter | None = None


def unet_of(size: str) -> UNetConfig:
    """The UNet of a size: two resolution levels, attention at the lower one, resampling without weights.

    Raises:
      ConfigError: an unknown size (closest named).
    """
    if size not in SIZES:
        raise ConfigError(unknown("size", size, SIZES))
    side, width, heads = SIZES[size]
    return UNetConfig(
        image_size=side,
        widths=(width, width),
        down_attention=(False, True),
        up_attention=(False, True),
        heads=(heads, heads),
        norm_groups=width // weights.GROUP,
        resample_conv=False,
        prediction="sample",
    )


def make(name: str, instance: int = 0, size: str = "small", images: int | None = None) -> PlantedNetwork:
    """Random instance number `instance` of the plant called `name`, with `IMAGES` of its size to score on.

    Raises:
      ConfigError: an unknown plant or size (closest named).
    """
    if name not in PLANTS:
        raise ConfigError(unknown("plant", name, PLANTS))
    unet, schedule, images = unet_of(size), cosine_schedule(STEPS), images or IMAGES[size]
    seeds = np.random.SeedSequence([instance, list(PLANTS).index(name), list(SIZES).index(size)])
    wires, drawn = (np.random.default_rng(seed) for seed in seeds.spawn(2))
    timesteps = STEPS - 1 - np.searchsorted(np.asarray(schedule.log_snr)[::-1], LOG_SNR)
    wired = PLANTS[name](unet, schedule, timesteps, wires)
    scored, others = np.split(wired.draw_images(drawn, 2 * images, unet.image_size), 2)
    denoiser = functools.partial(Denoiser, f"{name}-{size}-{instance}", unet, schedule)
    identity = weights.template(unet)[1]

    def network(gain: float) -> Denoiser:
        return denoiser(wired.params_of(gain), identity)

    gain = 1.0
    if wired.fit:
        gain = GAINS[wired.fit](network, next(iter(wired.signs)), others, timesteps)
    return PlantedNetwork(
        name=name,
        size=size,
        instance=instance,
        denoiser=network(gain),
        images=scored,
        others=others,
        timesteps=timesteps.astype(np.int32),
        signs=wired.signs,
        pairs=wired.pairs,
        window=wired.window,
        quarter=wired.quarter,
    )
