"""Targets of pictures against hand-made pictures, and probes against ridge regression done the long way."""

import jax
import numpy as np
import pytest

from mechdiff.analysis.roles import image_features, probes
from mechdiff.core.errors import ConfigError

SIDE = 8
read = jax.jit(image_features.features)


def moved(changed, picture=None):
    """Squared distance of every target between a picture and a changed one."""
    base = np.zeros((SIDE, SIDE, 3), np.float32) if picture is None else picture
    single, other = (jax.tree.map(np.asarray, read(np.float32(x))) for x in (base, changed))
    return {name: float(((single[name] - other[name]) ** 2).sum()) for name in single}


def test_a_ramp_has_its_slope_everywhere_and_a_flat_picture_no_edges():
    ramp = np.broadcast_to(0.1 * np.arange(SIDE)[None, :, None], (SIDE, SIDE, 3)).astype(np.float32)
    result = np.asarray(jax.jit(lambda x: image_features.sobel(image_features.luminance(x)))(ramp))
    np.testing.assert_allclose(result[:, 1:-1], 0.1, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(read(np.full_like(ramp, 0.3))["edges"]), 0, atol=2e-6)


def test_local_variance_is_that_of_nine_pixels():
    gray = np.random.default_rng(0).uniform(-1, 1, (SIDE, SIDE)).astype(np.float32)
    result = np.asarray(jax.jit(image_features.local_variance)(gray))
    padded = np.pad(gray, 1, mode="edge")
    expected = [[padded[y : y + 3, x : x + 3].var() for x in range(SIDE)] for y in range(SIDE)]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_each_target_answers_to_what_it_is_named_for():
    checker = 0.2 * (np.indices((SIDE, SIDE)).sum(0) % 2 * 2 - 1.0)[..., None] * np.ones(3)
    fine = moved(checker)
    assert fine["detail0"] == pytest.approx(0.04, rel=1e-4) and fine["layout"] < 1e-10 > fine["color"]
    light = moved(np.full((SIDE, SIDE, 3), 0.5))
    assert light["layout"] == pytest.approx(16 * 0.25, rel=1e-4)
    assert max(value for name, value in light.items() if name != "layout") < 1e-9
    tinted = np.ones((SIDE, SIDE, 1)) * (np.array([1.0, 0, 0]) - image_features.LUMINANCE[0])
    tint = moved(tinted)
    assert tint["color"] > 1 and tint["layout"] < 1e-9
    step = np.where(np.arange(SIDE)[None, :, None] < 4, -1.0, 1.0) * np.ones((SIDE, 1, 3))
    assert moved(step)["edges"] > 10 * moved(step)["texture"]


def test_octaves_share_out_the_energy_of_a_picture_but_its_coarsest_part():
    x = np.random.default_rng(1).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    energy = sum(float(np.asarray(part)[0]) ** 2 for part in jax.jit(image_features.octaves)(x))
    coarse = x.reshape(4, 4, 4, 4, 3).mean((1, 3))
    assert energy == pytest.approx((x**2).mean() - (coarse**2).mean(), rel=1e-4)
    assert image_features.image_feature_names(16) == (
        "edges",
        "detail0",
        "detail1",
        "texture",
        "color",
        "layout",
    )
    with pytest.raises(ConfigError, match="10 pixels"):
        image_features.image_feature_names(10)


def test_parts_are_mean_colors_and_an_absent_part_is_nothing():
    x = np.zeros((2, SIDE, SIDE, 3), np.float32)
    x[:, :4] = [1, 0.5, -0.5]
    masks = np.zeros((2, 2, SIDE, SIDE), np.float32)
    masks[0, 0, :4], masks[1, 0, :2] = 1, 0.5
    result = np.asarray(jax.jit(image_features.part_means)(x, masks))
    np.testing.assert_allclose(result[:, 0], [[1, 0.5, -0.5]] * 2, rtol=1e-6)
    np.testing.assert_allclose(result[:, 1], 0)


def test_left_out_error_is_that_of_fits_without_each_picture(monkeypatch):
    rng = np.random.default_rng(2)
    images, y = rng.uniform(-1, 1, (12, 2, 2, 3)), rng.standard_normal((12, 1))
    monkeypatch.setattr(probes, "PENALTIES", np.array([0.3]))
    result = probes.fit(images, y)
    x = images.reshape(12, -1)
    penalty = 0.3 * np.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T).mean()

    def ridge(x, y):
        centered = x - x.mean(0)
        w = np.linalg.solve(centered.T @ centered + penalty * np.eye(12), centered.T @ (y - y.mean(0)))
        return w, y.mean(0) - x.mean(0) @ w

    w, offset = ridge(x, y)
    np.testing.assert_allclose(result.weights, w, atol=1e-10)
    np.testing.assert_allclose(result.offset, offset, atol=1e-10)
    keep = [np.arange(12) != i for i in range(12)]
    errors = [y[i] - np.add(*_read(ridge(x[k], y[k]), x[i])) for i, k in enumerate(keep)]
    assert result.r2 == pytest.approx(1 - np.sum(np.square(errors)) / np.sum((y - y.mean()) ** 2), rel=1e-6)


def _read(fitted, x):
    return x @ fitted[0], fitted[1]


def test_probes_read_what_pixels_hold_and_nothing_else():
    rng = np.random.default_rng(4)
    factors = {
        "background_brightness": rng.uniform(0, 1, 40),
        "background_hue": rng.uniform(0, 1, 40),
        "hair_style": rng.integers(0, 4, 40),
        "eye_size": rng.uniform(0.82, 1.22, 40),  # not in the pictures
        "pose": np.zeros(40),  # frozen
    }
    columns = probes.columns(factors)
    assert (
        "pose" not in columns
        and columns["background_hue"].shape == (40, 2) == columns["hair_style"][:, ::2].shape
    )
    shown = np.concatenate([columns[name] for name in list(columns)[:3]], axis=1)
    images = shown @ rng.standard_normal((shown.shape[1], 192)) + 0.3 * rng.standard_normal((40, 192))
    result = probes.fit_all(images.reshape(40, 8, 8, 3), factors, least=0.5)
    assert set(result) == {"background_brightness", "background_hue", "hair_style"}
    weights, offset = probes.as_arrays(result)["background_hue"]
    reading = images @ weights + offset
    assert np.corrcoef(reading[:, 0], np.cos(2 * np.pi * factors["background_hue"]))[0, 1] > 0.9
    with pytest.raises(ConfigError, match="5 reference images"):
        probes.fit(images[:5].reshape(5, 8, 8, 3), shown[:5])
