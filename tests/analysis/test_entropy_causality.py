"""Does function follow entropy: heads where it does and where it doesn't, and tempered effects by hand."""

import jax
import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import entropy_causality
from mechdiff.analysis.roles import image_features
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.validation.planted import networks

HEADS, LEVELS, IMAGES, TARGETS = 12, 2, 8, ("edges", "detail0", "texture", "color", "layout")
NAMES = [f"{layer}.head{i}" for layer in ("down1.attn0", "mid.attn0", "up1.attn0") for i in range(4)]
TEMPERATURES = np.array([0.5, 1.0, 2.0])


def attention(entropy) -> xr.Dataset:
    """Every head's normalized entropy with a little noise of levels and images."""
    noise = 0.01 * np.random.default_rng(0).standard_normal((HEADS, LEVELS, IMAGES))
    values = np.asarray(entropy)[:, None, None] + noise
    variables = {"normalized_entropy": (("head", "t", "image"), values)}
    return xr.Dataset(variables, coords={"head": NAMES, "tokens": ("head", [16] * HEADS)})


def spread(values, seed=1):
    noise = 0.01 * np.random.default_rng(seed).standard_normal((HEADS, LEVELS, IMAGES))
    return np.asarray(values)[:, None, None] + noise


def mean_of(values):
    """A quantity that is averaged over levels and images."""
    return lambda weights: values.mean(1) @ weights.T


def test_a_quantity_that_follows_entropy_is_seen_to():
    entropy = np.random.default_rng(2).uniform(0, 1, HEADS)
    found = entropy_causality.correlation(attention(entropy), mean_of(spread(entropy**2)), repeats=200)
    assert found.overall.estimate > 0.9 and found.overall.low > 0.8 and found.within.estimate > 0.8
    assert max(found.p, found.p_within) < 0.02 and found.heads == HEADS
    clean = np.ones((LEVELS, IMAGES))
    sharper = entropy_causality.correlation(
        attention(entropy), entropy_causality.effect_size(clean, clean + spread(-0.5 * entropy)), repeats=200
    )
    assert sharper.overall.estimate > 0.9  # the size of the damage, whatever its sign


def test_a_difference_between_layers_is_not_one_within():
    layer = np.repeat([0.2, 0.5, 0.8], 4)
    rng = np.random.default_rng(3)
    x, y = layer + 0.05 * rng.uniform(-1, 1, HEADS), layer + 0.05 * rng.uniform(-1, 1, HEADS)
    found = entropy_causality.correlation(attention(x), mean_of(spread(y)), repeats=200)
    assert found.p < 0.02 < 0.05 < found.p_within and found.overall.estimate > 0.8


def test_unrelated_quantities_give_uniform_p():
    p = []
    for seed in range(40):
        x, y = np.random.default_rng(seed).uniform(0, 1, (2, HEADS))
        found = entropy_causality.correlation(attention(x), mean_of(spread(y)), repeats=60, seed=seed)
        p += [(found.p, found.p_within)]
    assert (np.array(p) < 0.1).mean(0).max() < 0.25 and 0.35 < np.mean(p) < 0.65


def test_intervals_of_a_correlation_draw_people_where_they_are_known():
    """Eight images of two and of eight people: eight people are as good as images, alike ones aren't."""
    entropy = np.random.default_rng(2).uniform(0, 1, HEADS)
    noise = np.repeat(0.4 * np.random.default_rng(5).standard_normal((HEADS, 1, 4)), 2, axis=-1)
    other = mean_of(entropy[:, None, None] + np.broadcast_to(noise, (HEADS, LEVELS, IMAGES)))
    plain = attention(entropy)
    people = {"pairs": np.repeat(np.arange(4), 2), "each": np.arange(8)}
    known = {name: plain.assign_coords(person=("image", person)) for name, person in people.items()}
    found = {
        name: entropy_causality.correlation(given, other, repeats=400).overall
        for name, given in {"images": plain, **known}.items()
    }
    assert (found["images"].n, found["each"].n, found["pairs"].n) == (8, 8, 4)
    assert found["images"].low == found["each"].low and found["images"].high == found["each"].high
    width = {name: interval.high - interval.low for name, interval in found.items()}
    assert width["pairs"] > 1.2 * width["images"]


def effects_of(selective) -> xr.Dataset:
    """Role effects `(head, temperature, target)` with the share of `edges` given by `selective`."""
    share = np.asarray(selective)[:, :, None]
    rest = np.random.default_rng(4).uniform(0.9, 1.1, (HEADS, len(TEMPERATURES), len(TARGETS) - 1))
    values = np.concatenate([np.exp(2 * share), rest], axis=2)[..., None, None]
    coords = {"head": NAMES, "temperature": TEMPERATURES, "target": list(TARGETS)}
    return xr.Dataset({"effect": (("head", "temperature", "target", "t", "image"), values)}, coords=coords)


def test_roles_that_follow_entropy_within_and_between_heads_are_told_from_those_that_only_differ_between():
    rng = np.random.default_rng(5)
    base = rng.uniform(0.2, 0.8, (HEADS, 1))
    entropy = np.clip(base + np.array([-0.15, 0, 0.15]) + 0.02 * rng.standard_normal((HEADS, 3)), 0, 1)
    found = entropy_causality.within_head_slope(effects_of(entropy), entropy)
    assert found.follows[0] and found.heads == HEADS
    assert (found.within.high[1:] < 0).all()  # the others lose what the first gains
    assert found.within.low[0] > 0 and found.between.low[0] > 0
    fixed = np.tile(base, (1, 3))  # a head keeps its role whatever its entropy
    kept = entropy_causality.within_head_slope(effects_of(fixed), entropy)
    assert kept.between.low[0] > 0 and not any(kept.follows)
    np.testing.assert_allclose(kept.within.estimate[0], 0, atol=0.1)


def test_too_few_or_other_heads_are_refused():
    with pytest.raises(ConfigError, match="moved the entropy of 0 heads"):
        entropy_causality.within_head_slope(effects_of(np.ones((HEADS, 3))), np.ones((HEADS, 3)))
    with pytest.raises(ConfigError, match="12 heads have an entropy, 3"):
        entropy_causality.correlation(attention(np.ones(HEADS)), mean_of(np.ones((3, LEVELS, IMAGES))))


def test_the_strongest_selectivity_is_that_of_the_weighted_effects():
    values = np.ones((2, 3, 1, 2))
    values[0, 1] = [[3, 7]]
    values[1] = 0
    effect = xr.Dataset(
        {"effect": (("component", "target", "t", "image"), values)},
        coords={"component": ["a.head0", "a.head1"], "target": ["edges", "color", "layout"]},
    )
    found = entropy_causality.max_selectivity(effect)(np.array([[1.0, 0], [0.5, 0.5]]))
    np.testing.assert_allclose(found, [[2 / 4, 4 / 6], [-1, -1]])


class Recorded(Engine):
    """In the place of an engine: predictions that the rows' gates and temperatures decide by hand."""

    def reduce(self, stacked, batch, reduction):
        gate, warmth = stacked.gate["mid.attn0.head"], stacked.temperature["mid.attn0.head"]
        count = len(batch.images)
        self.rows = gate, warmth
        read = (gate * warmth).sum(1)[:, None, None] * np.ones((1, count, self.numbers))
        return (np.float32(read), np.ones((len(gate), count), np.float32)), np.float32(read[0] * 0 + 2)


def test_tempered_effects_compare_each_temperature_with_leaving_the_head_out():
    one = np.ones(2, np.float32)
    identity = Intervention({"mid.attn0.head": one}, {}, {"mid.attn0.head": one}, ALWAYS)
    denoiser = Denoiser("by hand", networks.unet_of("small"), cosine_schedule(100), {}, identity)
    images = np.random.default_rng(6).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
    found = jax.jit(image_features.features)(images)
    engine = Recorded(denoiser)
    engine.numbers = sum(value.shape[-1] for value in found.values())
    gates = np.full((2, 2, 1, 5), 0.5)  # temperature, component, t, image
    tempered = xr.Dataset(
        {"gate": (("temperature", "component", "t", "image"), gates)},
        coords={"component": ["mid.attn0.head0", "mid.attn0.head1"], "temperature": [0.5, 4.0], "t": [7]},
    )
    effect = entropy_causality.temperature_effects_on_roles(
        denoiser, tempered, images, jax.random.key(0), engine
    )
    np.testing.assert_array_equal(engine.rows[0][:3], [[0, 1], [0.5, 1], [0.5, 1]])
    np.testing.assert_array_equal(engine.rows[1][:3], [[1, 1], [0.5, 1], [4, 1]])
    layout = np.asarray(found["layout"], np.float64)
    # Leaving out reads 1, temperature 0.5 reads 1.25, none 2, temperature 4 reads 3.
    expected = 16 * np.array([0.25, 1, 2]) ** 2 / layout.var(0).sum()
    np.testing.assert_allclose(
        effect["effect"].sel(target="layout", head="mid.attn0.head0")[:, 0, 0], expected, rtol=1e-5
    )
    assert (
        list(effect["temperature"].values) == [0.5, 1, 4]
        and np.isnan(effect["loss"].sel(temperature=1)).all()
    )
