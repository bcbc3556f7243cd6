"""Features of sparse autoencoders as components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name as name
from safetensors.numpy import save_file

from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import ablate
from mechdiff.models.traced import wrap
from mechdiff.models.traced.autoencoder import Autoencoder, load_autoencoder, with_features

SCHEDULE = linear_schedule(10)
RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((3, 2, 2, 4)).astype(np.float32), np.array([1, 4, 8], np.int32)


def autoencoder(top=0, threshold=0.0, stack=()):
    draw = lambda *shape: RNG.normal(size=(*stack, *shape)).astype(np.float32)
    return Autoencoder(
        draw(4, 6), draw(6), draw(6, 4), draw(4), np.full((*stack, 6), threshold, np.float32), top
    )


def fn(params, x, t):
    return 2 * name(jnp.sin(params * x), "mid.mlp") + 1


def wrapped(features):
    return wrap(with_features(fn, {"mid.mlp": features}), 1.5, schedule=SCHEDULE, example=(X, T))


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"threshold": 0.5}], ids=str)
def test_all_gates_one_is_the_untouched_function_bit_by_bit(options, optimized):
    denoiser = wrapped(autoencoder(**options))
    assert [site for site in denoiser.identity.gate] == ["mid.mlp.feature", "mid.mlp"]
    output = np.asarray(jax.jit(denoiser.predict)(denoiser.identity, X, T))
    np.testing.assert_array_equal(output.view(np.uint32), np.asarray(jax.jit(fn)(1.5, X, T)).view(np.uint32))


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"threshold": 0.5}], ids=str)
def test_a_feature_left_out_is_decoded_without_it_and_the_error_added_back(options):
    features = autoencoder(**options)
    denoiser = wrapped(features)
    a = np.sin(1.5 * np.asarray(X, np.float64))
    before = (a - features.b_dec) @ features.W_enc + features.b_enc
    f = np.where(before > features.threshold, np.maximum(before, 0), 0)
    if features.top:
        f = np.where(f >= np.sort(f, axis=-1)[..., -features.top][..., None], f, 0)
    error = a - (f @ features.W_dec + features.b_dec)
    assert np.abs(f[..., 1]).max() > 0
    f[..., 1] = 0
    expected = 2 * (f @ features.W_dec + features.b_dec + error) + 1
    output = denoiser.predict(ablate(denoiser.identity, ["mid.mlp.feature1"]), X, T)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_features_come_out_as_activations():
    features = autoencoder()
    denoiser = wrapped(features)
    value = denoiser.captured(denoiser.identity, X, T)[1]["mid.mlp.feature"]
    np.testing.assert_allclose(value, features.encode(jnp.sin(1.5 * X)), rtol=1e-5, atol=1e-6)


def test_each_turn_of_a_scan_has_its_own():
    def scanned(params, x, t):
        return jax.lax.scan(lambda h, _: (name(jnp.sin(params * h), "b*.mlp"), None), x, None, length=2)[0]

    both = autoencoder(stack=(2,))
    denoiser = wrap(with_features(scanned, {"b*.mlp": both}), 1.5, schedule=SCHEDULE, example=(X, T))
    second = jax.tree.map(lambda leaf: leaf[1], both)
    a = jnp.sin(1.5 * jnp.sin(1.5 * X))
    expected = a - second.encode(a)[..., 3:4] * second.W_dec[3]
    output = denoiser.predict(ablate(denoiser.identity, ["b1.mlp.feature3"]), X, T)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_reads_safetensors(tmp_path):
    features = autoencoder(threshold=0.25)
    tensors = {key: getattr(features, key) for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    save_file(tensors, tmp_path / "sae.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_autoencoder(tmp_path / "sae.safetensors"), features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": None}, "lacks 'W_dec'; it holds W_enc, b_dec, b_enc"),
        ({"W_dec": np.ones((4, 6), np.float32)}, r"W_dec has shape \(4, 6\), its neighbours need \(6, 4\)"),
    ],
)
def test_foreign_files_get_one_line(tmp_path, change, message):
    features = autoencoder()
    tensors = {key: getattr(features, key) for key in ("W_enc", "b_enc", "W_dec", "b_dec")} | change
    save_file({key: value for key, value in tensors.items() if value is not None}, tmp_path / "sae")
    with pytest.raises(CheckpointError, match=message):
        load_autoencoder(tmp_path / "sae")


def test_no_file_gets_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="can't be read as safetensors"):
        load_autoencoder(tmp_path / "absent")


def test_width_and_site_have_to_fit():
    wide = lambda params, x, t: name(jnp.concatenate([x, x], -1), "mid.mlp")[..., :4]

    def run(fn, site):
        return wrap(with_features(fn, {site: autoencoder()}), 1.0, schedule=SCHEDULE, example=(X, T))

    with pytest.raises(ConfigError, match=r"autoencoder of 'mid\.mlp' has width 4, the value 8"):
        run(wide, "mid.mlp")
    with pytest.raises(ConfigError, match=r"unknown site of an autoencoder 'mid\.mpl'; closest: mid\.mlp"):
        run(fn, "mid.mpl")
