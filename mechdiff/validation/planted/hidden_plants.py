"""Plants that single ablations, or means over images and timesteps, hide.

Two of three heads suffice; a backup repairs a part only; two heads that need each other; a component for one
image in eight, for one place, at some timesteps against others; two features in one pair of channels.
"""

import functools

import numpy as np

from mechdiff.core.types import PyTree
from mechdiff.validation.planted import datasets, weights
from mechdiff.validation.planted.plants import Plant
from mechdiff.validation.planted.weights import CARRIER, HIDDEN, LIVE
from mechdiff.validation.planted.wiring import BRANCHES, Wired, all_heads, copied, head_name, pick

REPAIRED = 0.5  # share of the first head's work that the second does when the first is ablated
DISTRACTOR_LEAK = 3 * weights.LEAK  # where a pooled effect near 0 has to stand out from those of distractors
TALLY = 1e-4  # what each head of `two_of_three` adds to its count
ENOUGH = (1.1, 1.6)  # where the output of `two_of_three` begins and ends to rise with the count
STEEPNESS = 150.0  # of these ramps, for a count of 1
STEEP = 20.0  # of the SiLUs that read a feature's sign


def _two_of_three(unet, schedule, timesteps, rng) -> Wired:
    """Three heads, each of which adds 1 to a count; `_counting` shows the color that all images share where
    the count is 2 or 3, and nothing where it is 1 or 0.

    What they add is read from the carrier, which no noise reaches, so that the count is right at every
    timestep and in every image. It is the same in all images: mean and resample ablation restore it.
    """
    heads = all_heads(unet)
    members = [heads[i] for i in rng.choice(len(heads), 3, replace=False)]
    base = weights.distractors(unet, rng)

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {0: 0.8, 1: 0.8})
        _counting(params)
        for head in members:
            weights.head(params, head, unet.heads[-1], 0.0, channels=())
            _adding_one(params, head, unet.heads[-1])
        return params

    first, second, third = map(head_name, members)
    pairs = ((first, second, 1), (first, third, 1), (second, third, 1))
    return Wired(datasets.tinted, params_of, dict.fromkeys((first, second, third), 1), fit=None, pairs=pairs)


def _adding_one(params: PyTree, head: tuple[str, int], heads: int) -> None:
    """A head that adds 1 to the count: `TALLY` to both channels of the live pair of image channel 2, and as
    much less to both of its carrier, so that the mean of the group stays 0."""
    stage, index = head
    value = params[stage]["v"]["kernel"]
    value[HIDDEN + 6, index * (value.shape[1] // heads)] = 0.5  # the norm leaves the carrier near 2
    written = _written(params, head, heads)
    written[:] = 0
    written[LIVE + 4 : LIVE + 6], written[LIVE + 6 : LIVE + 8] = TALLY, -TALLY


def _counting(params: PyTree) -> None:
    """Image channel 2 is `datasets.TINT` where the count is above `ENOUGH`, and 0 where it is below: the
    difference of two ramps, one in either channel of the pair, exact to rounding at every whole count.

    The count is so small against the carrier that it hardly changes the norm of the live group.
    """
    low, high = (count * TALLY / (CARRIER / 2) for count in ENOUGH)
    steep = STEEPNESS / (TALLY / (CARRIER / 2))
    last = params["conv_out"]
    last["norm"]["scale"][LIVE + 4 : LIVE + 6] = steep
    last["norm"]["bias"][LIVE + 4 : LIVE + 6] = -steep * low, -steep * high
    rise = datasets.TINT / (steep * (high - low))
    last["conv"]["kernel"][1, 1, LIVE + 4 : LIVE + 6, 2] = rise, -rise


def _partial_backup(unet, schedule, timesteps, rng) -> Wired:
    """One head averages over all positions. A later one adds `REPAIRED` times what is missing of that:
    nothing, unless the first is ablated."""
    first, second = _in_two_layers(unet, rng)
    base, heads = weights.distractors(unet, rng), unet.heads[-1]

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {})
        weights.head(params, first, heads, gain, (0, 1, 2))
        weights.head(params, second, heads, REPAIRED * gain, (0, 1, 2))
        value = params[second[0]]["v"]["kernel"]
        start = second[1] * (value.shape[1] // heads)
        for channel in range(3):
            value[LIVE + 2 * channel, start + channel] = -CARRIER / 2 / gain
        return params

    names = head_name(first), head_name(second)
    return Wired(datasets.flat, params_of, dict.fromkeys(names, 1), pairs=((*names, 1),))


def _composition(unet, schedule, timesteps, rng) -> Wired:
    """One head copies the content of distant positions to a relay, a later one from there to the output."""
    first, second = _in_two_layers(unet, rng)
    base, heads = weights.distractors(unet, rng), unet.heads[-1]
    relay = HIDDEN + 4  # that of image channel 2, which holds nothing

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {1: 0.8})
        params["conv_in"]["conv"]["kernel"][:, :, 2] = 0
        weights.head(params, first, heads, 1.0, (0,), match=9.0)
        _redirected(params, first, heads, relay)
        weights.head(params, second, heads, gain, (2,), match=9.0)
        _redirected(params, second, heads, LIVE)
        return params

    names = head_name(first), head_name(second)
    return Wired(datasets.regions, params_of, {names[1]: 1, names[0]: 1}, pairs=((*names, -1),))


def _redirected(params: PyTree, head: tuple[str, int], heads: int, plus: int) -> None:
    """A head's only content goes to the pair of channels at `plus` instead of where it went."""
    written = _written(params, head, heads)
    gain = written.max()
    written[:] = 0
    written[plus], written[plus + 1] = gain, -gain


def _written(params: PyTree, head: tuple[str, int], heads: int) -> np.ndarray:
    """Weights from a head's first content to all channels; writing to them changes `params`."""
    stage, index = head
    kernel = params[stage]["out"]["kernel"]
    return kernel[index * (len(kernel) // heads)]


def _rare(unet, schedule, timesteps, rng) -> Wired:
    """One head shows the mean of channel 0 in channel 2. It is there in one image of eight; in the others it
    is not, and the head does nearly as much harm in all as it helps in the few."""
    head, base = pick(rng, all_heads(unet)), weights.distractors(unet, rng)

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {0: 0.8, 1: 0.8})
        weights.head(params, head, unet.heads[-1], gain)
        _redirected(params, head, unet.heads[-1], LIVE + 4)
        return params

    return Wired(datasets.rarely, params_of, {head_name(head): 1}, fit="balanced")


def _place(unet, schedule, timesteps, rng) -> Wired:
    """One head copies content that is in one quarter of the image only, among positions of that quarter."""
    head, base = pick(rng, all_heads(unet)), weights.distractors(unet, rng)
    quarter = int(rng.integers(2)), int(rng.integers(2))

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {1: 0.8})
        weights.head(params, head, unet.heads[-1], gain, match=9.0)
        return params

    draw_images = functools.partial(datasets.quarter, where=quarter)
    return Wired(draw_images, params_of, {head_name(head): 1}, quarter=quarter)


def _changing(unet, schedule, timesteps, rng) -> Wired:
    """One branch adds the noisy content: it helps at some timesteps, and hurts as much at noisier ones."""
    stage, base = pick(rng, BRANCHES), weights.distractors(unet, rng, leak=DISTRACTOR_LEAK)

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {1: 0.8})
        weights.branch(params, stage, gain)
        return params

    return Wired(datasets.cells, params_of, {f"{stage}.res": 1}, fit="balanced")


def _superposition(unet, schedule, timesteps, rng) -> Wired:
    """One head carries two features, which never occur together, as the two signs of one number: mean channel
    0 where it is positive, mean channel 1 where it is negative. SiLUs of the output tell them apart."""
    (stage, index), base = pick(rng, all_heads(unet)), weights.distractors(unet, rng)
    heads = unet.heads[-1]

    def params_of(gain):
        params = copied(base)
        weights.frame(params, {2: 0.8})
        weights.head(params, (stage, index), heads, gain)
        value = params[stage]["v"]["kernel"]
        value[HIDDEN + 2, index * (value.shape[1] // heads)] = -CARRIER / 2
        last = params["conv_out"]
        last["norm"]["scale"][LIVE : LIVE + 2] = STEEP
        last["conv"]["kernel"][1, 1, LIVE : LIVE + 4, :2] = 0
        for channel in range(2):
            last["conv"]["kernel"][1, 1, LIVE + channel, channel] = CARRIER / 2 / STEEP
        return params

    return Wired(datasets.either, params_of, {f"{stage}.head{index}": 1})


def _in_two_layers(unet, rng: np.random.Generator) -> tuple[tuple[str, int], tuple[str, int]]:
    """Two random heads, the second in a later layer."""
    heads = all_heads(unet)
    layers = list(dict.fromkeys(stage for stage, _ in heads))
    early, late = sorted(rng.choice(len(layers), 2, replace=False))
    first, second = (pick(rng, [head for head in heads if head[0] == layers[i]]) for i in (early, late))
    return first, second


HIDDEN_PLANTS: dict[str, Plant] = {
    "two_of_three": _two_of_three,
    "partial_backup": _partial_backup,
    "composition": _composition,
    "rare": _rare,
    "place": _place,
    "changing": _changing,
    "superposition": _superposition,
}
