"""Roles: effects are those of whole passes, planted ones are found, decoys get none; matching of heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from reference.networks import random_params

from mechdiff.analysis import roles
from mechdiff.analysis.roles import image_features, matching
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, predict_x0, q_sample
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import ablate, leave_one_out
from mechdiff.interventions.components import Component, component_at
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, denoise
from mechdiff.validation.planted import networks, weights

UNET, SCHEDULE, KEY = networks.unet_of("small"), cosine_schedule(networks.STEPS), jax.random.key(4)
DETAIL, MEAN = "up0.block0.skip", "mid.attn0.head2"
NAMES = (DETAIL, "up0.block1.skip", MEAN, "mid.attn0.head1")
LEVELS, COUNT, PARTS = (120, 300), 60, ("top", "bottom")
FRESH = 20  # untrained networks


def pictures(count=10):
    """A color each, and a checkerboard of its own strength in the first channel."""
    rng = np.random.default_rng(0)
    x = np.broadcast_to(rng.uniform(-0.6, 0.6, (count, 1, 1, 3)), (count, 8, 8, 3)).copy()
    x[..., 0] += rng.uniform(0.05, 0.4, (count, 1, 1)) * (np.indices((8, 8)).sum(0) % 2 * 2 - 1)
    return np.float32(x)


IMAGES = pictures()
EVAL_SET = EvalSet(IMAGES, LEVELS, KEY)
MASKS = np.float32(np.stack([np.repeat([1, 0], 4), np.repeat([0, 1], 4)]))[None, :, :, None] * np.ones(
    (10, 1, 1, 8)
)


def planted():
    """One skip adds what is fine, one head adds the mean of the second channel; all else are decoys."""
    params = weights.distractors(UNET, np.random.default_rng(1))
    weights.frame(params, {0: 0.5, 1: 0.5, 2: 0.8}, high_pass=True)
    weights.skip(params, "up0.block0", 0.6)
    weights.head(params, ("mid.attn0", 2), UNET.heads[-1], 0.6, channels=(1,))
    return params


@pytest.fixture(scope="module")
def measured():
    """Effects on the planted network and on one of random weights, and those of matched sets: one program."""
    known, identity = components(UNET), weights.template(UNET)[1]
    chosen = [component_at(known, name) for name in NAMES]
    names, alone = leave_one_out(identity, chosen)
    sets, random = roles.matched_sets(chosen, known, identity, COUNT)
    gate = {site: np.concatenate([leaf, random.gate[site]]) for site, leaf in alone.gate.items()}
    stacked = type(alone)(**{**vars(alone), "gate": gate})
    results = []
    for params in (planted(),):
        denoiser = Denoiser("planted", UNET, SCHEDULE, params, identity)
        options = {"masks": MASKS, "parts": PARTS}
        results.append(roles.role_effects(denoiser, EVAL_SET, stacked, [*names, *sets], **options))
    fresh = []
    for seed in range(FRESH):
        untrained = Denoiser("fresh", UNET, SCHEDULE, random_params(UNET, seed), identity)
        options = {"masks": MASKS, "parts": PARTS}
        fresh.append(roles.role_effects(untrained, EVAL_SET, alone, names, **options))
    classes = [roles.matched_class(component, identity) for component in chosen]
    own, null = (
        results[0].isel(component=range(4)),
        results[0].isel(component=range(4, results[0].sizes["component"])),
    )
    return own, null, fresh, classes


def test_effects_are_those_of_whole_passes(measured):
    t, rows = LEVELS[1], np.full(len(IMAGES), LEVELS[1], np.int32)
    identity = weights.template(UNET)[1]

    @jax.jit
    def predicted(params, intervention):
        noise = image_noise(KEY, np.arange(len(IMAGES)), IMAGES.shape[1:])
        x_t = q_sample(SCHEDULE, IMAGES, rows, noise)
        eps = denoise(UNET, SCHEDULE, params, intervention, x_t, rows)
        return jnp.clip(predict_x0(SCHEDULE, x_t, rows, eps), -1, 1)

    read = jax.jit(lambda x: image_features.features(x, MASKS, PARTS))
    pictures = *(predicted(planted(), each) for each in (identity, ablate(identity, [MEAN]))), IMAGES
    clean, changed, own = (jax.tree.map(np.asarray, read(x)) for x in pictures)
    result = measured[0]["effect"].sel(component=MEAN, t=t)
    assert "part:top" in result["target"] and result.sizes["target"] == 7
    for name in result["target"].values:
        expected = ((changed[name] - clean[name]) ** 2).sum(-1) / np.asarray(own[name]).var(0).sum()
        np.testing.assert_allclose(result.sel(target=name), expected, rtol=2e-3, atol=1e-5)


def test_planted_roles_are_found_and_decoys_get_none(measured):
    result = roles.assign(*measured)
    by_component = dict(zip(result.components, result.role, strict=True))
    assert by_component[DETAIL] in ("detail0", "edges", "texture")
    assert by_component[MEAN] in ("layout", "color")
    assert by_component[NAMES[1]] == by_component[NAMES[3]] == roles.UNASSIGNED
    assert result.p[3] == 1


def test_matched_sets_have_as_many_channels_elsewhere_at_the_same_resolution():
    known, identity = components(UNET), weights.template(UNET)[1]
    chosen = [component_at(known, name) for name in NAMES]
    sets, stacked = roles.matched_sets(chosen, known, identity, 5)
    assert len(set(sets)) == 3 and len(sets) == 15
    removed = {site: (leaf == 0).sum(1) for site, leaf in stacked.gate.items()}
    width, heads = identity.gate["mid.block0.res"].shape[-1], UNET.heads[-1]
    np.testing.assert_array_equal(sum(removed.values()), np.repeat([width, width, width // heads], 5))
    assert (removed[DETAIL][:5] == 0).all() and removed[DETAIL][5:10].sum() > 0
    touched = {site for site, count in removed.items() if count[10:].any()}
    assert all(component_at(known, site).resolution == 4 for site in touched)


@pytest.mark.parametrize("stage", ["down0.attn", "encoder8.attention"])
def test_heads_of_other_networks_have_no_null_and_the_way_out_is_named(stage):
    ones, zeros = (
        {f"{stage}.head": np.ones(2, np.float32)},
        {f"{stage}.head": np.zeros((4, 2, 1), np.float32)},
    )
    head = Component(f"{stage}.head0", "head", f"{stage}.head", (0, 1), 0, 0)
    with pytest.raises(ConfigError, match=f"{stage}.head0: .*roles: --part=res"):
        roles.matched_class(head, Intervention(ones, zeros, {}, ALWAYS))


def test_selectivity_by_hand():
    group = roles.target_groups(["edges", "layout", "part:eyes", "part:hair", "factor:pose"])
    np.testing.assert_array_equal(group, [0, 0, 1, 1, 2])
    result = roles.selectivity(np.array([[3.0, 1, 0, 0, 5]]), group)
    np.testing.assert_allclose(result, [[0.5, -0.5, np.nan, np.nan, np.nan]])


def fabricated(selective=1, components=8, seed=0) -> xr.Dataset:
    """Effects of `components` heads on 4 targets, the first on `edges` `selective` times as much."""
    effect = np.random.default_rng(seed).uniform(0.5, 1.5, (components, 4, 1, 3))
    effect[0, 0] *= selective
    names = ["edges", "detail0", "color", "layout"]
    heads = [f"mid.attn0.head{i}" for i in range(components)]
    coords = {"component": heads, "target": names}
    return xr.Dataset({"effect": (("component", "target", "t", "image"), effect)}, coords=coords)


def test_nothing_is_named_where_all_components_are_alike_or_the_untrained_ones_do_the_same():
    null = fabricated(1, 300, seed=1)
    null = null.assign_coords(component=["4 x 8"] * 300)
    fresh = fabricated(components=200, seed=99)
    named = [
        sum(
            role != roles.UNASSIGNED
            for role in roles.assign(fabricated(seed=s), null, [fresh], ["4 x 8"] * 8).role
        )
        for s in range(20)
    ]
    assert np.mean(np.array(named) > 0) <= 0.15
    assert roles.assign(fabricated(200), null, [fresh], ["4 x 8"] * 8).role[0] == "edges"
    assert (
        roles.assign(fabricated(200), null, [fresh, fabricated(900, 2, seed=5)], ["4 x 8"] * 8).role[0]
        == "unassigned"
    )


def heads_of_two_seeds(noise, seed=0):
    """Profiles and selectivity of 8 heads in 2 layers, and the same in another order within layers."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(4), 4 + rng.permutation(4)])
    profile, selective = rng.standard_normal((8, 6)), rng.standard_normal((8, 5))
    jitter = lambda a: a + noise * rng.standard_normal(a.shape)
    layers = ["down1.attn0"] * 4 + ["mid.attn0"] * 4
    labels = np.array(
        ["edges", "unassigned", "layout", "unassigned", "color", "edges", "unassigned", "layout"]
    )
    return (
        (profile, jitter(profile[order])),
        (selective, jitter(selective[order])),
        (list(labels), list(labels[order])),
        layers,
        order,
    )


def test_heads_are_matched_within_layers_and_roles_that_agree_beat_chance():
    profiles, selective, labels, layers, order = heads_of_two_seeds(0.1)
    np.testing.assert_array_equal(matching.match(*profiles, layers), np.argsort(order))
    result = matching.agreement(profiles, selective, labels, layers, repeats=500)
    assert result.labels == 1 and result.profiles > 0.9
    assert max(result.p_labels, result.p_profiles) < 0.02 and result.chance_labels < 0.6


def test_roles_that_have_nothing_to_do_with_the_matching_do_not_agree():
    p = []
    for seed in range(30):
        profiles, _, labels, layers, _ = heads_of_two_seeds(0.1, seed)
        unrelated = tuple(np.random.default_rng(seed).standard_normal((2, 8, 5)))
        p.append(matching.agreement(profiles, unrelated, labels, layers, repeats=100).p_profiles)
    assert 0.3 < np.mean(p) < 0.7
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        matching.agreement(profiles[:1], unrelated[:1], labels[:1], layers)
