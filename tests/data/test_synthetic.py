"""Procedural faces: independent factors, pictures that depend on nothing else, masks that fit them."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.core.errors import ConfigError
from mechdiff.core.keys import stream
from mechdiff.data import synthetic
from mechdiff.data.drawing.canvas import band, ellipse, ramp
from mechdiff.data.factors import FACTORS, GLASSES_RATE, RUNGS, SPECS, redraw, sample_factors
from mechdiff.data.synthetic import LAYERED, PARTS, face, faces, factor_pair, render, render_bytes

KEY = jax.random.key(0)
SIZE = 128  # one compiled painter for all tests that look closely; 16 for those that need many faces
sampled = synthetic._sample
covered = jax.jit(lambda *shape: ellipse(*shape, 2 / 32).sum())
banded = jax.jit(lambda *shape: band(*shape, 2 / 16).sum())
ladder = jax.jit(lambda key: [sample_factors(key, complexity) for complexity in range(5)])  # one compilation
seeds = st.integers(0, 2**31 - 1)
EXAMPLES = settings(max_examples=25)


def drawn(factors, size):
    """The picture of factors, in NumPy: slices and differences of JAX's arrays would be programs."""
    return jax.tree.map(np.asarray, synthetic._drawn(factors, size))


def shown(key, index, size):
    return jax.tree.map(np.asarray, face(key, index, size))


def part(picture, *names):
    """Sum of the named masks, (H, W)."""
    return np.sum([picture.masks[PARTS.index(name)] for name in names], axis=0)


def pool(image, size):
    """Block means down to size x size."""
    fold = image.shape[0] // size
    return np.asarray(image).reshape(size, fold, size, fold, -1).mean((1, 3))


def neutral(**values):
    base = {name: np.float32(spec.neutral) for name, spec in SPECS.items()}
    return base | {name: np.float32(value) for name, value in values.items()}


# --- factors


@EXAMPLES
@given(seeds, st.integers(0, 4))
def test_factors_stay_in_range_and_frozen_ones_at_neutral(seed, complexity):
    factors = jax.tree.map(np.asarray, ladder(jax.random.key(seed))[complexity])
    assert tuple(sorted(factors)) == tuple(sorted(FACTORS))
    for name, spec in SPECS.items():
        assert spec.low <= factors[name] <= spec.high or name not in RUNGS[complexity]
        if name not in RUNGS[complexity]:
            assert factors[name] == np.float32(spec.neutral)
        if spec.choices:
            assert float(factors[name]).is_integer() and factors[name] < spec.choices


@EXAMPLES
@given(seeds)
def test_freeing_more_factors_moves_no_other_draw(seed):
    draws = ladder(jax.random.key(seed))
    for complexity in range(4):
        assert set(RUNGS[complexity]) < set(RUNGS[complexity + 1])
        for name in RUNGS[complexity]:
            assert draws[complexity][name] == draws[4][name]


def test_a_draw_is_the_uniform_of_its_own_named_stream():
    spec = SPECS["eye_size"]
    uniform = jax.jit(
        lambda key: jax.random.uniform(stream(key, "eye_size"), (), minval=spec.low, maxval=spec.high)
    )
    np.testing.assert_allclose(sampled(KEY, 4)["eye_size"], uniform(KEY), rtol=1e-6)


def test_draws_are_uniform_and_uncorrelated():
    n = 3000
    draws = jax.jit(jax.vmap(sample_factors))(jax.random.split(KEY, n))
    table = np.stack([np.asarray(draws[name], np.float64) for name in FACTORS])
    for name, row in zip(FACTORS, table, strict=True):
        spec = SPECS[name]
        if name == "glasses":
            assert abs(row.mean() - GLASSES_RATE) < 4 * math.sqrt(GLASSES_RATE * (1 - GLASSES_RATE) / n)
        elif spec.choices:
            counts = np.bincount(row.astype(int), minlength=spec.choices)
            assert ((counts - n / spec.choices) ** 2 / (n / spec.choices)).sum() < 35  # chi2(7) at 1e-5
        else:
            unit = np.sort((row - spec.low) / (spec.high - spec.low))
            assert np.abs(unit - np.arange(n) / n).max() < 2.5 / math.sqrt(n), name  # Kolmogorov at 1e-5
    correlation = np.corrcoef(table) - np.eye(len(FACTORS))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)


@EXAMPLES
@given(seeds, st.sampled_from(FACTORS))
def test_redraw_moves_one_factor_by_a_quarter_of_its_range_or_to_another_choice(seed, name):
    key, spec = jax.random.key(seed), SPECS[name]
    before = sampled(key, 4)
    after = redraw(key, before, name)
    assert [other for other in FACTORS if before[other] != after[other]] == [name]
    assert spec.low <= after[name] <= spec.high
    if spec.choices:
        assert float(after[name]).is_integer()
    else:
        moved = abs(float(after[name]) - float(before[name])) / (spec.high - spec.low)
        assert 0.249 <= min(moved, 1 - moved) <= 0.5001


# --- pictures


@pytest.fixture(scope="module")
def gallery():
    """Eight faces of level 4, large."""
    return [shown(KEY, index, SIZE) for index in range(8)]


def test_pictures_are_finite_in_range_and_not_flat(gallery):
    for picture in gallery:
        assert picture.image.shape == (SIZE, SIZE, 3)
        assert picture.image.dtype == np.float32
        assert np.abs(picture.image).max() <= 1.0
        assert picture.image.std() > 0.1


def test_a_face_depends_on_seed_and_index_alone_whatever_its_batch():
    batch, shuffled = (
        jax.tree.map(np.asarray, faces(KEY, np.array(indices, np.int32), 16))
        for indices in ([3, 900, 5, 77], [77, 5, 1, 3])
    )
    for here, there in [(0, 3), (2, 1), (3, 0)]:
        np.testing.assert_array_equal(batch.image[here], shuffled.image[there])
        np.testing.assert_array_equal(batch.masks[here], shuffled.masks[there])
    alone = shown(KEY, 900, 16)
    np.testing.assert_allclose(batch.image[1], alone.image, atol=2e-5)
    np.testing.assert_allclose(batch.masks[1], alone.masks, atol=2e-5)
    assert np.abs(shown(jax.random.key(1), 900, 16).image - alone.image).mean() > 0.02


def test_bytes_do_not_depend_on_where_a_run_starts_and_match_the_pictures():
    whole = render_bytes(0, 0, 40, 16)
    assert whole.shape == (40, 16, 16, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(render_bytes(0, 13, 20, 16), whole[13:33])
    expected = 127.5 * (shown(KEY, 39, 16).image + 1)
    assert np.abs(whole[39] - expected).max() <= 0.5 + 1e-2
    assert render_bytes(0, 5, 0, 16).shape == (0, 16, 16, 3)


def test_the_generator_has_not_drifted():
    """Trained checkpoints belong to these pictures; whoever changes them must retrain."""
    mean = render_bytes(0, 0, 40, 16).astype(np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(mean, (114.908, 102.624, 89.622), atol=0.02)


def test_small_pictures_are_downsampled_large_ones():
    """16 pixels against the block means of 128: the grids painted on are 64 and 128 wide."""
    for index in range(8):
        large, small = shown(KEY, index, SIZE), shown(KEY, index, 16)
        error = np.abs(pool(large.image, 16) - small.image)
        assert error.mean() < 0.006 and error.max() < 0.12
        fine, coarse = (np.moveaxis(item.masks[: len(LAYERED)], 0, -1) for item in (large, small))
        assert np.abs(pool(fine, 16) - coarse).max() < 0.1


def test_edges_are_anti_aliased():
    """A tenth of a pixel of motion changes pixels by about a tenth of the contrast, which is at most 2.

    Hard edges would switch a tenth of all border pixels (some 1% of the picture) by the full contrast. Only
    where the hairline turns round the side of the head may an edge be sharper than a pixel.
    """
    step = 0.1 * 2 * synthetic.VIEW / SIZE
    for style in range(8):
        contrasts = dict(skin_brightness=1, hair_color=0, background_brightness=0.9)
        base = neutral(glasses=1, hair_style=style, **contrasts)
        here = drawn(base, SIZE).image
        for name in ("center_x", "center_y", "face_width"):
            moved = base | {name: base[name] + step}
            change = np.abs(drawn(moved, SIZE).image - here).max(-1)
            assert 0.05 < change.max() < (0.35 if style == 0 else 1.0), (name, style)
            assert np.mean(change > 0.35) < 1e-3, (name, style)


def test_a_shift_by_whole_pixels_moves_the_features_unchanged():
    pixels = 6
    here = drawn(neutral(), SIZE)
    there = drawn(neutral(center_x=pixels * 2 * synthetic.VIEW / SIZE), SIZE)
    where = part(here, "eyes", "brows", "mouth", "nose")[:, :-pixels] > 0.5
    difference = np.abs(here.image[:, :-pixels] - there.image[:, pixels:])
    assert where.sum() > 300 and difference[where].max() < 1e-3


def test_mirrored_factors_give_the_mirrored_face():
    signed = dict(center_x=0.07, pose=0.3, tilt=0.1, light_direction=0.6)
    opposite = {name: -value for name, value in signed.items()}
    left = drawn(neutral(hair_style=0, glasses=1, **signed), SIZE)
    right = drawn(neutral(hair_style=0, glasses=1, **opposite), SIZE)
    difference = np.abs(left.image - right.image[:, ::-1]).max(-1)
    assert difference[part(left, "eyes") == 0].max() < 2e-3  # eyes: the highlight sits a little to one side


# --- one factor at a time

SHOWS_IN = {
    "background_brightness": ("background",),
    "background_hue": ("background",),
    "clothes_hue": ("clothes",),
    "eye_color": ("eyes",),
    "brow_angle": ("brows",),
    "mouth_curvature": ("mouth",),
    "mouth_opening": ("mouth",),
    "mouth_width": ("mouth",),
    "glasses": ("glasses",),
    "hair_style": ("hair",),
    "hair_color": ("hair", "brows", "eyes"),
    "skin_hue": ("skin", "brows", "mouth"),
    "texture_amplitude": ("texture",),
    "texture_frequency": ("texture",),
    "texture_phase": ("texture",),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_pair_differs_in_its_factor_alone_and_only_where_that_factor_shows(name):
    size = SIZE if "texture" in name else 16  # texture is finer than 16 pixels show
    first, second = jax.tree.map(np.asarray, factor_pair(KEY, 2, name, size))
    assert [other for other in FACTORS if first.factors[other] != second.factors[other]] == [name]
    np.testing.assert_array_equal(first.image, shown(KEY, 2, size).image)
    change = np.abs(first.image - second.image).max(-1)
    assert change.max() > 0.03 and change.mean() > 1e-5
    if name in SHOWS_IN:
        where = np.maximum(part(first, *SHOWS_IN[name]), part(second, *SHOWS_IN[name]))
        assert change[where <= 1e-6].max() < 1e-5


def test_every_factor_moves_most_faces():
    keys = [jax.random.fold_in(KEY, index) for index in range(6)]
    people = [face(KEY, index, 16) for index in range(6)]
    for name in FACTORS:
        changed = [
            drawn(redraw(key, person.factors, name), 16) for key, person in zip(keys, people, strict=True)
        ]
        pairs = zip(people, changed, strict=True)
        visible = [np.abs(np.asarray(a.image) - b.image).max() > 1e-3 for a, b in pairs]
        assert np.mean(visible) > 0.6, name  # hair may hide the eyes, a tight crop the clothes


def test_each_rung_of_the_ladder_adds_dimensions():
    """The effective rank of the pictures grows, exp(entropy of the spectrum of their covariance)."""
    people = [ladder(jax.random.fold_in(KEY, index)) for index in range(48)]
    ranks, variances = [], []
    for complexity in range(5):
        images = np.stack([drawn(factors[complexity], 16).image.ravel() for factors in people])
        spectrum = np.linalg.svd(images - images.mean(0), compute_uv=False)[:-1] ** 2
        share = spectrum / spectrum.sum()
        ranks.append(np.exp(-(share * np.log(share)).sum()))
        variances.append(images.var(0).mean())
    assert np.all(np.diff(ranks) > 0.3), ranks
    assert ranks[4] > 3 * ranks[0] and variances[4] > 1.15 * variances[0]


# --- masks


def test_masks_lie_in_the_unit_interval_and_the_painted_parts_tile_the_picture(gallery):
    for picture in gallery:
        assert picture.masks.shape == (len(PARTS), SIZE, SIZE)
        assert float(picture.masks.min()) >= 0 and float(picture.masks.max()) <= 1 + 1e-5
        np.testing.assert_allclose(part(picture, *LAYERED), 1.0, atol=1e-4)
        assert np.all(part(picture, "nose") <= part(picture, "skin") + 1e-6)
        assert np.all(part(picture, "texture") <= part(picture, "skin") + 1e-6)


def test_masks_cover_what_one_expects_of_a_portrait():
    areas = {name: float(part(drawn(neutral(), SIZE), name).mean()) for name in PARTS}
    bounds = dict(background=(0.2, 0.6), skin=(0.25, 0.6), eyes=(0.005, 0.03), brows=(0.003, 0.02))
    bounds |= dict(mouth=(0.005, 0.03), hair=(0.05, 0.25), nose=(0.005, 0.03), edges=(0.03, 0.25))
    for name, (low, high) in bounds.items():
        assert low < areas[name] < high, (name, areas[name])
    assert areas["glasses"] == 0 and areas["texture"] == 0


def test_switches_empty_their_masks():
    bald = drawn(neutral(hair_style=0), SIZE)
    worn = drawn(neutral(glasses=1, texture_amplitude=0.5), SIZE)
    assert part(bald, "hair").max() == 0
    assert part(worn, "glasses").max() > 0.9
    assert part(worn, "texture").max() > 0.5


def test_features_are_where_the_factors_say():
    """Centroids of brows and nose against the geometry, in pixels."""
    factors = neutral(center_x=0.1)
    picture = drawn(factors, SIZE)
    place = (np.arange(SIZE) + 0.5) * 2 * synthetic.VIEW / SIZE - synthetic.VIEW
    for name in ("eyes", "brows", "mouth", "nose"):
        mask = part(picture, name)
        assert abs((mask.sum(0) * place).sum() / mask.sum() - 0.1) < 0.01, name
    eyes = part(picture, "eyes")
    middle = (eyes.sum(1) * place).sum() / eyes.sum()
    assert abs(middle - (factors["center_y"] - 0.06 * factors["face_height"])) < 0.03
    right = eyes * (place > 0.1)
    spacing = (right.sum(0) * place).sum() / right.sum() - 0.1
    assert abs(spacing - factors["eye_spacing"] * factors["face_width"]) < 0.02


def test_edge_mask_follows_the_borders(gallery):
    for picture in gallery:
        edges = part(picture, "edges") > 0.5
        sharp = np.abs(np.diff(picture.image, axis=1)).max(-1) > 0.3
        assert edges[:, 1:][sharp].mean() > 0.6  # most strong steps are borders of parts
        assert edges.mean() < 0.35


# --- brushes


@EXAMPLES
@given(st.floats(0.2, 0.7), st.floats(0.2, 0.7), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_coverage_of_an_ellipse_sums_to_its_area(rx, ry, x0, y0):
    pixel = 2 / 32
    place = (np.arange(32) + 0.5) * pixel - 1
    x, y = (plane.astype(np.float32) for plane in np.meshgrid(place - x0, place - y0))
    area = float(covered(x, y, rx, ry)) * pixel**2
    assert area == pytest.approx(math.pi * rx * ry, rel=0.02)


@EXAMPLES
@given(st.floats(-0.8, 0.8), st.floats(0.0, 0.15))
def test_coverage_of_a_band_sums_to_its_thickness_however_thin(top, thickness):
    pixel = 2 / 16
    y = ((np.arange(16) + 0.5) * pixel - 1)[:, None].astype(np.float32)
    assert float(banded(y, top, top + thickness)) * pixel == pytest.approx(thickness, abs=1e-5)
    assert float(banded(y, top + 0.1, top)) == 0


def test_a_ramp_meets_its_colors_and_is_linear_between():
    colors = ((0.0, 0.2, 0.4), (1.0, 0.4, 0.0), (0.0, 0.0, 0.0))
    mixed = jax.jit(lambda value: ramp(value, colors))
    for value, expected in [(0.0, colors[0]), (0.5, colors[1]), (1.0, colors[2]), (0.25, (0.5, 0.3, 0.2))]:
        np.testing.assert_allclose(mixed(np.float32(value)), expected, atol=1e-6)


# --- bad input


def test_bad_input_is_named_in_one_line():
    with pytest.raises(ConfigError, match="unknown factor 'eye_colour'; closest: eye_color"):
        factor_pair(KEY, 0, "eye_colour", 16)
    with pytest.raises(ConfigError, match=r"complexity=5 is out of range; 0 to 4"):
        sample_factors(KEY, 5)
    for size in (4, 257):
        with pytest.raises(ConfigError, match=rf"size={size} pixels is out of range; 8 to 256"):
            render(jax.device_put(neutral()), size)
    with pytest.raises(ConfigError, match="start=-1"):
        render_bytes(0, -1, 4, 16)
