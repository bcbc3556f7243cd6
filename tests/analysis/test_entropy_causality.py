"""Whether function follows entropy: heads where it does and where it doesn't, tempered effects by hand."""

import jax
import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import entropy_causality
from mechdiff.analysis.roles import image_features
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.validation.planted import networks

HEADS, TARGETS = 12, ("edges", "detail0", "texture", "color", "layout")
NAMES = [f"{layer}.head{i}" for layer in ("down1.attn0", "mid.attn0", "up1.attn0") for i in range(4)]
TEMPERATURES = np.array([0.5, 1.0, 2.0])


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
    slopes = entropy_causality.within_head_slope(effects_of(entropy), entropy)
    assert slopes.follows[0] and slopes.heads == HEADS
    assert (slopes.within.high[1:] < 0).all()  # the others lose what the first gains
    assert slopes.within.low[0] > 0 and slopes.between.low[0] > 0
    effects = effects_of(entropy)
    effects["effect"][0, 2] = 0  # a head that changes nothing at some temperature
    fewer = entropy_causality.within_head_slope(effects, entropy)
    assert fewer.heads == HEADS - 1 and fewer.follows[0] and np.isfinite(fewer.p).all()
    fixed = np.tile(base, (1, 3))  # a head keeps its role whatever its entropy
    kept = entropy_causality.within_head_slope(effects_of(fixed), entropy)
    assert kept.between.low[0] > 0 and not any(kept.follows)
    np.testing.assert_allclose(kept.within.estimate[0], 0, atol=0.1)


def test_of_too_few_heads_there_are_no_slopes():
    entropy = np.ones((HEADS, 3))
    entropy[:2, 0] = 0.5  # of two heads alone it moves
    assert entropy_causality.within_head_slope(effects_of(np.ones((HEADS, 3))), entropy) is None


class Recorded(Engine):
    """In the place of an engine: predictions that the rows' gates and temperatures decide by hand."""

    def reduce(self, stacked, batch, reduction):
        gate, warmth = stacked.gate["mid.attn0.head"], stacked.temperature["mid.attn0.head"]
        count = len(batch.images)
        self.rows = gate, warmth
        read = (gate * warmth).sum(1)[:, None, None] * np.ones((1, count, self.numbers))
        return (np.float32(read), np.ones((len(gate), count), np.float32)), np.float32(read[0] * 0 + 2)


@pytest.mark.parametrize("colored", [True, False])
def test_tempered_effects_compare_each_temperature_with_leaving_the_head_out(colored):
    """Of gray images there is no effect on colors, which would be one over rounding."""
    ones = np.ones(2, np.float32)
    identity = Intervention({"mid.attn0.head": ones}, {}, {"mid.attn0.head": ones}, ALWAYS)
    denoiser = Denoiser("by hand", networks.unet_of("small"), cosine_schedule(100), {}, identity)
    images = np.random.default_rng(6).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
    images = images if colored else images[..., :1].repeat(3, -1)
    features = jax.jit(image_features.features)(images)
    engine = Recorded(denoiser)
    engine.numbers = sum(value.shape[-1] for value in features.values())
    gates = np.full((2, 2, 1, 5), 0.5)  # temperature, component, t, image
    tempered = xr.Dataset(
        {"gate": (("temperature", "component", "t", "image"), gates)},
        coords={"component": ["mid.attn0.head0", "mid.attn0.head1"], "temperature": [0.5, 4.0], "t": [7]},
    )
    effect = entropy_causality.temperature_effects_on_roles(
        denoiser, tempered, images, jax.random.key(0), engine
    )
    assert ("color" in effect["target"].values) == colored and np.isfinite(effect["effect"]).all()
    np.testing.assert_array_equal(engine.rows[0][:3], [[0, 1], [0.5, 1], [0.5, 1]])
    np.testing.assert_array_equal(engine.rows[1][:3], [[1, 1], [0.5, 1], [4, 1]])
    layout = np.asarray(features["layout"], np.float64)
    # Leaving out reads 1, temperature 0.5 reads 1.25, none 2, temperature 4 reads 3.
    expected = 16 * np.array([0.25, 1, 2]) ** 2 / layout.var(0).sum()
    np.testing.assert_allclose(
        effect["effect"].sel(target="layout", head="mid.attn0.head0")[:, 0, 0], expected, rtol=1e-5
    )
    assert (
        list(effect["temperature"].values) == [0.5, 1, 4]
        and np.isnan(effect["loss"].sel(temperature=1)).all()
    )
