"""Plants in which a single component, or a pair, does all the work."""

from collections.abc import Callable

import numpy as np

from mechdiff.validation.planted import datasets, weights
from mechdiff.validation.planted.wiring import BRANCHES, STEPS, Wired, all_heads, copied, pick

Plant = Callable[..., Wired]  # of a UNet, its noise schedule, the timesteps scored and a generator


def _one_head(unet, rng, draw_images, channels, direct, match=0.0) -> Wired:
    (stage, index), base = pick(rng, all_heads(unet)), weights.distractors(unet, rng)

    def params_of(gain):
        params = copied(base)
        weights.frame(params, direct)
        weights.head(params, (stage, index), unet.heads[-1], gain, channels, match)
        return params

    return Wired(draw_images, params_of, {f"{stage}.head{index}": 1})


def _long_range(unet, schedule, timesteps, rng) -> Wired:
    """One head copies the content of distant positions with the same mark."""
    return _one_head(unet, rng, datasets.regions, (0,), {1: 0.8}, match=9.0)


def _uniform(unet, schedule, timesteps, rng) -> Wired:
    """One head averages over all positions with equal weights: maximal entropy."""
    return _one_head(unet, rng, datasets.flat, (0, 1, 2), {})


def _redundant(unet, schedule, timesteps, rng) -> Wired:
    """Two redundant heads: the output is the same with one as with two. Distractors don't leak here, since a
    norm without a carrier would amplify the leak when a head is ablated."""
    heads = all_heads(unet)
    pair = [heads[i] for i in rng.choice(len(heads), 2, replace=False)]
    base = weights.distractors(unet, rng, leak=0.0)

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {}, carrier=0.0)
        for stage, index in pair:
            weights.head(params, (stage, index), unet.heads[-1], gain, (0, 1, 2))
        return params

    first, second = (f"{stage}.head{index}" for stage, index in pair)
    return Wired(datasets.flat, params_of, {first: 1, second: 1}, fit=None, pairs=((first, second, 1),))


def _window(unet, schedule, timesteps, rng) -> Wired:
    """One branch adds the content, and its time injection opens it at two neighboring timesteps only."""
    stage, base = pick(rng, BRANCHES), weights.distractors(unet, rng)
    start = int(rng.integers(0, len(timesteps) - 1))
    edges = np.concatenate([[0], (timesteps[1:] + timesteps[:-1]) // 2, [STEPS]])
    window = (int(edges[start]), int(edges[start + 2]))

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {1: 0.8})
        weights.branch(params, stage, gain, closed=8.0)
        weights.opened(params, unet, schedule, stage, window, closed=8.0)
        return params

    return Wired(datasets.cells, params_of, {f"{stage}.res": 1, f"{stage}.time": 1}, window=window)


def _cancelling(unet, schedule, timesteps, rng) -> Wired:
    """Two large branches cancel: ablating one leaves the other's error, ablating both changes nothing."""
    pair, base = rng.choice(BRANCHES[1:], 2, replace=False).tolist(), weights.distractors(unet, rng)
    shift = tuple(int(i) for i in rng.choice([-1, 1], 2))

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {0: 0.8, 1: 0.8})
        for sign, stage in zip((1, -1), pair, strict=True):
            weights.branch(params, stage, sign * 3 * gain, shift)
        return params

    first, second = (f"{stage}.res" for stage in pair)
    return Wired(datasets.cells, params_of, {first: 1, second: 1}, fit=None, pairs=((first, second, -1),))


def _detail(unet, schedule, timesteps, rng) -> Wired:
    """One skip carries the detail that halving the resolution loses."""
    stage, base = pick(rng, ("up0.block0", "up0.block1")), weights.distractors(unet, rng)

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {1: 0.8}, high_pass=True)
        weights.skip(params, stage, gain)
        return params

    return Wired(datasets.checkers, params_of, {f"{stage}.skip": 1})


def _harmful(unet, schedule, timesteps, rng) -> Wired:
    """One branch adds the content of a diagonal neighbor, an error: ablating it lowers the loss."""
    stage, base = pick(rng, BRANCHES[1:]), weights.distractors(unet, rng)
    shift = tuple(int(i) for i in rng.choice([-1, 1], 2))

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {0: 0.8, 1: 0.8})
        weights.branch(params, stage, 0.8 * gain, shift)
        return params

    return Wired(datasets.cells, params_of, {f"{stage}.res": -1}, fit=None)


SHOWN: dict[str, Plant] = {
    "long_range": _long_range,
    "uniform": _uniform,
    "redundant": _redundant,
    "window": _window,
    "cancelling": _cancelling,
    "detail": _detail,
    "harmful": _harmful,
}
