"""Families of planted networks: the responsible components of each, its weights and its images."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Int

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import Images, PyTree
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.stages import stages
from mechdiff.validation.planted import datasets, weights
from mechdiff.validation.planted.gain import best_gain

STEPS = 1000
LOG_SNR = (3.0, 1.5, 0.0, -1.5, -3.0)  # of the timesteps scored: neither nearly clean nor nearly pure noise
SIZES = {"small": (8, 32, 4), "large": (16, 48, 6)}  # side, width, heads: 36 and 44 components
IMAGES = {"small": 16, "large": 8}  # scored


@dataclasses.dataclass(frozen=True)
class PlantedNetwork:
    """A denoiser whose responsible components are known.

    Attributes:
      name, size, instance: which one.
      denoiser: the network with its schedule, parameters and identity intervention.
      images, others: to score on, and to take replacements from.
      timesteps: to score at.
      signs: planted component -> 1 if ablating it raises the loss, -1 if it lowers the loss.
      pair: two components that act jointly, and the sign of their interaction (positive: redundant); or None.
      window: half-open interval of t outside of which the planted components have no effect; or None.
    """

    name: str
    size: str
    instance: int
    denoiser: Denoiser
    images: Images
    others: Images
    timesteps: Int[np.ndarray, " levels"]
    signs: dict[str, int]
    pair: tuple[str, str, int] | None = None
    window: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class _Wired:
    """A planted network before its gain is fitted: `redo(gain)` gives its parameters at a gain."""

    scene: datasets.PlantedImages
    redo: Callable[[float], PyTree]
    signs: dict[str, int]
    fit: bool = True  # the gain that denoises best, as training would find it
    pair: tuple[str, str, int] | None = None
    window: tuple[int, int] | None = None


def unet_of(size: str) -> UNetConfig:
    """The UNet of a size: two resolution levels, attention at the lower one, resampling without weights."""
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
    """Random instance number `instance` of the plant called `name`, with `IMAGES` of its size to score on."""
    if name not in FAMILIES:
        raise ConfigError(unknown("plant", name, FAMILIES))
    unet, schedule, images = unet_of(size), cosine_schedule(STEPS), images or IMAGES[size]
    seeds = np.random.SeedSequence([instance, list(FAMILIES).index(name), list(SIZES).index(size)])
    wires, pictures = (np.random.default_rng(seed) for seed in seeds.spawn(2))
    timesteps = STEPS - 1 - np.searchsorted(np.asarray(schedule.log_snr)[::-1], LOG_SNR)
    wired = FAMILIES[name](unet, schedule, timesteps, wires)
    scored, others = np.split(wired.scene(pictures, 2 * images, unet.image_size), 2)
    denoiser = functools.partial(Denoiser, f"{name}-{size}-{instance}", unet, schedule)
    identity = weights.template(unet)[1]
    network = lambda gain: denoiser(wired.redo(gain), identity)
    gain = best_gain(network, next(iter(wired.signs)), others, timesteps) if wired.fit else 1.0
    return PlantedNetwork(
        name=name,
        size=size,
        instance=instance,
        denoiser=network(gain),
        images=scored,
        others=others,
        timesteps=timesteps.astype(np.int32),
        signs=wired.signs,
        pair=wired.pair,
        window=wired.window,
    )


def _heads(unet: UNetConfig) -> list[tuple[str, int]]:
    places = [stage for stage in stages(unet) if stage.op == "attention"]
    return [(stage.name, head) for stage in places for head in range(unet.heads[stage.level])]


def _one_head(unet, rng, scene, channels, direct, match=0.0) -> _Wired:
    (stage, index), base = _pick(rng, _heads(unet)), weights.distractors(unet, rng)

    def redo(gain):
        params = _copy(base)
        weights.frame(params, direct)
        weights.head(params, stage, index, unet.heads[-1], gain, channels, match)
        return params

    return _Wired(scene, redo, {f"{stage}.head{index}": 1})


def _long_range(unet, schedule, timesteps, rng) -> _Wired:
    """One head copies the content of distant positions with the same mark."""
    return _one_head(unet, rng, datasets.regions, (0,), {1: 0.8}, match=9.0)


def _uniform(unet, schedule, timesteps, rng) -> _Wired:
    """One head averages over all positions with equal weights: maximal entropy."""
    return _one_head(unet, rng, datasets.flat, (0, 1, 2), {})


def _redundant(unet, schedule, timesteps, rng) -> _Wired:
    """Two redundant heads: the output is the same with one as with two. Distractors don't leak here, since a
    norm without a carrier would amplify the leak when a head is ablated."""
    heads = _heads(unet)
    pair = [heads[i] for i in rng.choice(len(heads), 2, replace=False)]
    base = weights.distractors(unet, rng, leak=0.0)

    def redo(gain):
        params = _copy(base)
        weights.frame(params, {}, carrier=0.0)
        for stage, index in pair:
            weights.head(params, stage, index, unet.heads[-1], gain, (0, 1, 2))
        return params

    first, second = (f"{stage}.head{index}" for stage, index in pair)
    return _Wired(datasets.flat, redo, {first: 1, second: 1}, fit=False, pair=(first, second, 1))


def _window(unet, schedule, timesteps, rng) -> _Wired:
    """One branch adds the content, and its time injection opens it at two neighboring timesteps only."""
    stage, base = _pick(rng, BRANCHES), weights.distractors(unet, rng)
    start = int(rng.integers(0, len(timesteps) - 1))
    edges = np.concatenate([[0], (timesteps[1:] + timesteps[:-1]) // 2, [STEPS]])
    window = (int(edges[start]), int(edges[start + 2]))

    def redo(gain):
        params = _copy(base)
        weights.frame(params, {1: 0.8})
        weights.branch(params, stage, gain, closed=8.0)
        weights.opened(params, unet, schedule, stage, window, closed=8.0)
        return params

    return _Wired(datasets.cells, redo, {f"{stage}.res": 1, f"{stage}.time": 1}, window=window)


def _cancelling(unet, schedule, timesteps, rng) -> _Wired:
    """Two large branches cancel: ablating one leaves the other's error, ablating both changes nothing."""
    pair, base = rng.choice(BRANCHES[1:], 2, replace=False).tolist(), weights.distractors(unet, rng)
    shift = tuple(int(i) for i in rng.choice([-1, 1], 2))

    def redo(gain):
        params = _copy(base)
        weights.frame(params, {0: 0.8, 1: 0.8})
        for sign, stage in zip((1, -1), pair, strict=True):
            weights.branch(params, stage, sign * 3 * gain, shift)
        return params

    first, second = (f"{stage}.res" for stage in pair)
    return _Wired(datasets.cells, redo, {first: 1, second: 1}, fit=False, pair=(first, second, -1))


def _detail(unet, schedule, timesteps, rng) -> _Wired:
    """One skip carries the detail that halving the resolution loses."""
    stage, base = _pick(rng, ("up0.block0", "up0.block1")), weights.distractors(unet, rng)

    def redo(gain):
        params = _copy(base)
        weights.frame(params, {1: 0.8}, high_pass=True)
        weights.skip(params, stage, gain)
        return params

    return _Wired(datasets.checkers, redo, {f"{stage}.skip": 1})


def _harmful(unet, schedule, timesteps, rng) -> _Wired:
    """One branch adds the content of a diagonal neighbor, an error: ablating it lowers the loss."""
    stage, base = _pick(rng, BRANCHES[1:]), weights.distractors(unet, rng)
    shift = tuple(int(i) for i in rng.choice([-1, 1], 2))

    def redo(gain):
        params = _copy(base)
        weights.frame(params, {0: 0.8, 1: 0.8})
        weights.branch(params, stage, 0.8 * gain, shift)
        return params

    return _Wired(datasets.cells, redo, {f"{stage}.res": -1}, fit=False)


BRANCHES = ("down0.block0", "down1.block0", "mid.block0", "mid.block1")  # with norms that hidden has alone
FAMILIES: dict[str, Callable[..., _Wired]] = {
    "long_range": _long_range,
    "uniform": _uniform,
    "redundant": _redundant,
    "window": _window,
    "cancelling": _cancelling,
    "detail": _detail,
    "harmful": _harmful,
}


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _copy(params: PyTree) -> PyTree:
    return jax.tree.map(np.copy, params)
