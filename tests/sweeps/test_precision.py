"""Reduced precision: what it changes, and that a sweep measures it, against sweeps run both ways."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import identity_of, random_params

from mechdiff import stats
from mechdiff.circuits import audits, screen_tables, screening
from mechdiff.core import devices
from mechdiff.core.config import SweepConfig, UNetConfig, override
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models import convolution
from mechdiff.models.denoiser import Denoiser
from mechdiff.storage import labelled
from mechdiff.sweeps import precision, sampling, stopping
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.sequential import sequential_sweep

KEY = jax.random.key(5)
CONFIG = SweepConfig(image_block=4, chunk=8, ablations=("zero",))


def test_a_split_array_is_the_sum_of_its_parts_and_the_first_fits_tf32():
    x = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-20, 20, 0.04)
    x = x.astype(np.float32)
    high, low = (np.asarray(part) for part in convolution.split(x))
    np.testing.assert_array_equal(high + low, x)
    fraction = np.frexp(high)[0] * 2**11
    np.testing.assert_array_equal(fraction, np.round(fraction))
    assert (np.abs(low) <= np.abs(high) * 2.0**-10).all()


def test_three_products_of_cut_inputs_are_nearly_exact():
    """The tensor cores are played by a cut to TF32; one such product alone errs a hundred times as much."""
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(64, 64)).astype(np.float32) for _ in range(2))

    def cut(a, b):
        return jnp.matmul(convolution.split(a)[0], convolution.split(b)[0])

    exact = a.astype(np.float64) @ b.astype(np.float64)
    scale = np.abs(exact).max()
    once, thrice = cut(a, b), convolution.three_products(cut, a, b)
    assert np.abs(thrice - exact).max() < 3e-6 * scale < np.abs(once - exact).max() / 30


@pytest.mark.parametrize(("setting", "says"), [("tf32", "changes nothing"), ("3xtf32", "changes nothing")])
def test_on_a_cpu_they_change_nothing_and_say_so(setting, says):
    assert not devices.acts(setting) and says in devices.explanation(setting)
    before = devices.precision()
    with devices.multiplying(setting):
        assert devices.precision() == before


def test_bfloat16_on_a_cpu_rounds_what_enters_and_leaves_convolutions():
    rng = np.random.default_rng(2)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((2, 8, 8, 3), (3, 3, 3, 4)))
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32) for a in (x, kernel)]
    sides = ((1, 1), (1, 1))
    with devices.multiplying("bfloat16"):
        outputs = convolution.convolve(x, kernel, 1, sides)
    expected = jnp.asarray(convolution.convolve(*rounded, 1, sides), jnp.bfloat16)
    np.testing.assert_array_equal(outputs, np.asarray(expected, np.float32))
    assert np.abs(outputs - convolution.convolve(x, kernel, 1, sides)).max() > 1e-3


def test_bfloat16_on_a_card_is_a_product_of_bfloat16_maps(monkeypatch):
    """If its result were float32, the card's compiler would drop the casts and multiply in float32."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 3, 2, 2), np.float32)
    with devices.multiplying("bfloat16"):
        traced = jax.make_jaxpr(lambda x, k: convolution.convolve(x, k, 1, ((1, 1), (1, 1))))(x, kernel)
    (product,) = (e for e in traced.eqns if e.primitive.name == "conv_general_dilated")
    assert {v.aval.dtype for v in (*product.invars, *product.outvars)} == {jnp.dtype("bfloat16")}
    assert traced.out_avals[0].dtype == np.float32


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"value for sweep\.precision: 'fp8'; .*tf32"):
        override(preset("tiny"), ["sweep.precision=fp8"])


@pytest.fixture(scope="module")
def denoiser(tiny):
    """One level, and components that all do something."""
    unet = UNetConfig(
        image_size=8, widths=(8,), heads=(1,), norm_groups=4, mid_attention=False,
        down_attention=(False,), up_attention=(False,),
    )  # fmt: skip
    return Denoiser("random", unet, make_schedule(tiny.diffusion), random_params(unet), identity_of(unet))


def test_a_sweep_measures_the_error_of_its_precision(denoiser, tmp_path, caplog):
    """Both sweeps in full, then: the error is the largest difference at the timesteps that were checked."""
    images = np.random.default_rng(3).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)
    eval_set = EvalSet(images, np.array([3, 20, 45]), KEY)
    chosen = denoiser.components()[:6]
    exact = ablation_sweep(denoiser, eval_set, tmp_path, config=CONFIG, chosen=chosen)
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    reduced = ablation_sweep(denoiser, eval_set, tmp_path, config=config, chosen=chosen)
    assert "precision_error" not in exact and len(list(tmp_path.iterdir())) == 2
    assert "rounds what enters and leaves convolutions" in caplog.text
    assert reduced.attrs["precision"] == "bfloat16" and reduced.attrs["precision_images"] == 4

    def increases(sweep):
        cells = sweep.isel(image=slice(4)).astype(np.float64).mean("image")
        return 100 * (cells["loss"] / cells["clean_loss"] - 1)

    expected = np.abs(increases(reduced) - increases(exact)).max("t")
    np.testing.assert_allclose(reduced["precision_error"], expected, rtol=1e-3, atol=1e-5)
    assert float(expected.max()) > 1e-4
    same = dataclasses.replace(CONFIG, precision="tf32")  # no other numbers on a CPU: the same store
    again = ablation_sweep(denoiser, eval_set, tmp_path, config=same, chosen=chosen)
    np.testing.assert_array_equal(again["loss"], exact["loss"])
    assert len(list(tmp_path.iterdir())) == 2 and "precision_error" not in again


def test_a_sequential_sweep_measures_the_error_of_its_precision(denoiser, tmp_path):
    images = np.random.default_rng(4).uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32)
    eval_set, chosen = EvalSet(images, np.array([3, 45]), KEY), denoiser.components()[:3]
    rule, options = stopping.StoppingRule(1e6), {"chosen": chosen, "block": 32}
    exact = sequential_sweep(denoiser, eval_set, rule, tmp_path, **options)
    reduced = sequential_sweep(denoiser, eval_set, rule, tmp_path, precision="bfloat16", **options)
    assert not exact.precision_error.any() and reduced.precision_error.max() > 1e-4
    stores = {len(labelled.read(path).data_vars): labelled.read(path) for path in tmp_path.glob("*.zarr")}
    increases = [
        100 * (cells["loss"].mean("image") / cells["clean_loss"].mean("image") - 1)
        for cells in (stores[count].isel(image=slice(8)).astype(np.float64) for count in (2, 3))
    ]
    expected = np.abs(increases[0] - increases[1]).max("t")
    np.testing.assert_allclose(reduced.precision_error, expected, rtol=1e-3, atol=1e-5)
    again = sequential_sweep(denoiser, eval_set, rule, tmp_path, precision="bfloat16", **options)
    np.testing.assert_array_equal(again.low, reduced.low)


def test_no_sign_is_certain_that_the_precision_can_not_carry():
    rng = np.random.default_rng(5)
    clean = rng.gamma(20.0, size=(2, 64))
    loss = clean * np.array([1.5, 1.01])[:, None, None] + 0.01 * rng.normal(size=(2, 2, 64))
    names, rule = ("a.res", "b.res"), stopping.StoppingRule(1e-3, joint=False)
    exact, rough = (stopping.interim_result(clean, loss, names, rule, error) for error in (0.0, 5.0))
    assert exact.decided.tolist() == [True, True] and rough.decided.tolist() == [True, False]
    np.testing.assert_allclose(exact.low - rough.low, 5)
    np.testing.assert_allclose(rough.high - exact.high, 5)


def test_what_is_checked_is_spread_over_the_timesteps():
    assert precision.subset(24, 16) == ((0, 8, 15, 23), 8)
    assert precision.subset(2, 4) == ((0, 1), 4)


def test_a_sampling_sweep_measures_the_error_of_its_precision(denoiser, tmp_path):
    """Both sweeps in full: the error is the largest difference of mean distances over the windows."""
    samples, windows = sampling.SampleSet([3, 12, 20, 33, 45], 3, KEY), [(0, 15), (15, 40)]
    config = dataclasses.replace(sampling.SETTINGS, image_block=2)
    run = functools.partial(
        sampling.sampling_sweep, denoiser, samples, windows, tmp_path, chosen=denoiser.components()[:3]
    )
    exact = run(config=config)
    reduced = run(config=dataclasses.replace(config, precision="bfloat16"))
    assert "precision_error" not in exact and precision.sampling_statement(exact) is None
    part = [
        sweep["distance"].isel(sample=slice(2)).astype(np.float64).mean("sample")
        for sweep in (exact, reduced)
    ]
    expected = np.abs(part[1] - part[0]).max("window")
    np.testing.assert_allclose(reduced["precision_error"], expected, rtol=1e-3, atol=1e-7)
    assert float(expected.max()) > 1e-5
    assert "2 samples x 2 windows drawn in float32 too" in precision.sampling_statement(reduced)
    nothing = reduced.assign(precision_error=reduced["distance"].mean(("sample", "window")) * 0 + 1e3)
    assert precision.above_error(reduced).any() and not precision.above_error(nothing).any()
    assert np.isnan(sampling.mean_distance(nothing).estimate).all()
    means, plain = sampling.mean_distance(reduced), sampling.mean_distance(exact)
    np.testing.assert_allclose(plain.estimate, exact["distance"].astype(np.float64).mean("sample"), rtol=1e-6)
    assert (plain.low <= plain.estimate).all() and (plain.estimate <= plain.high).all() and plain.n == 3
    of_three = stats.student_mean(exact["distance"].values)
    assert (plain.low <= np.maximum(of_three.low, 0) + 1e-9).all() and (plain.low >= 0).all()
    assert (plain.high >= of_three.high - 1e-9).all()
    alone = sampling.mean_distance(reduced.drop_vars("precision_error"))
    np.testing.assert_allclose(
        means.high - alone.high,
        np.broadcast_to(expected.values[..., None], means.high.shape),
        rtol=1e-3,
        atol=1e-7,
    )


def test_samples_say_how_far_they_are_from_those_of_float32(denoiser):
    """Of a draw that multiplies once: by bfloat16 inputs on the one side."""
    rng = np.random.default_rng(6)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((6, 4, 4, 3), (3, 3, 3, 3)))

    def draw(count):
        return convolution.convolve(x[:count], kernel, 1, ((1, 1), (1, 1)))

    images, error = precision.drawn("bfloat16", draw, 6)
    rms = np.sqrt(((images - np.asarray(draw(6))) ** 2).mean((1, 2, 3)))
    assert error == pytest.approx(rms[: precision.DRAWN].max(), rel=1e-4) and error > 1e-3
    same, nothing = precision.drawn("tf32", draw, 6)
    np.testing.assert_array_equal(same, draw(6))
    assert nothing == 0


def test_a_screen_measures_the_error_of_its_precision(denoiser, tmp_path):
    images = np.random.default_rng(7).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    eval_set, chosen = EvalSet(images, np.array([3, 45]), KEY), denoiser.components()[:5]
    screens = {
        setting: screening.screen_and_verify(
            denoiser,
            eval_set,
            tmp_path,
            chosen=chosen,
            config=screening.ScreenConfig(k=1, shortlist=5, random_vectors=1, precision=setting),
        )
        for setting in ("float32", "bfloat16")
    }
    exact, reduced = screens.values()
    assert not exact.precision_error.any() and exact.score_error == 0
    relative = [
        100 * (scores.score.mean("image") / scores.clean_loss.mean("image")).values
        for scores in (exact.scores["identity"], reduced.scores["identity"])
    ]
    assert reduced.score_error == pytest.approx(np.abs(relative[1] - relative[0]).max(), rel=1e-2)
    assert (np.abs(reduced.effect - exact.effect) <= reduced.precision_error * 1.001 + 1e-5).all()
    assert reduced.precision_error.max() > 1e-4
    names = [component.name for component in chosen]
    assert screen_tables.lines(reduced, names)[-1].startswith("precision ")
    assert not screen_tables.lines(exact, names)[-1].startswith("precision ")


def test_what_may_be_a_miss_within_the_error_counts_as_one():
    sizes, order = np.array([5.0, 4.0, 3.9, 1.0]), np.arange(4)
    config = audits.ScreenConfig(k=2, shortlist=2, audit=2, miss_bound=1.0)

    def missed(error):
        rng = np.random.default_rng(0)
        return audits.audit_until(
            order, lambda i: sizes[i], config, rng, error=lambda i: np.full(len(i), error)
        ).missed

    assert [missed(error) for error in (0.0, 0.04, 0.06, 2.0)] == [0, 0, 1, 2]
