"""The least loss there can be stands beside the losses of networks of Gaussian images."""

import dataclasses

import jax
import numpy as np
import pytest
import xarray as xr
from reference.networks import SMALL, identity_of, random_params

from mechdiff.analysis import effects
from mechdiff.core.config import DataConfig, DiffusionConfig
from mechdiff.data import gaussian
from mechdiff.data.dataset import to_float
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.storage import files
from mechdiff.study import choosing, examine, floor, held_out, packing, results_folder
from mechdiff.study.eval_images import EvalImages

SCHEDULE = make_schedule(DiffusionConfig(schedule="cosine", steps=50))
TIMESTEPS = np.array([2, 40])


def test_the_floor_is_the_closed_form_on_the_images_and_noise_of_the_sweep():
    images = to_float(gaussian.render_bytes(0, 0, 120, 8)).reshape(2, 60, 8, 8, 3)
    eval_set = EvalSet(images, TIMESTEPS, jax.random.key(3))
    of_gaussian = EvalImages(images[0], images[0], "", facts={"name": held_out.NAMES["gaussian"]})
    best = floor.best_denoiser(of_gaussian, SCHEDULE)
    assert floor.best_denoiser(dataclasses.replace(of_gaussian, facts={"name": "CelebA"}), SCHEDULE) is None
    noise_of = jax.jit(lambda batch: batch.noised(SCHEDULE).noise)
    results = floor.with_floor(xr.Dataset(coords={"t": TIMESTEPS}), best, eval_set)
    for i, t in enumerate(TIMESTEPS):
        a, s = (
            float(np.asarray(v)[t]) for v in (SCHEDULE.sqrt_alphas_bar, SCHEDULE.sqrt_one_minus_alphas_bar)
        )
        noise = np.asarray(noise_of(eval_set.batch(i, np.arange(60))), np.float64)
        coefficients = np.fft.fft2((a * images[i] + s * noise) @ gaussian.COLORS.T, axes=(1, 2))
        eps = np.fft.ifft2(coefficients * s / (a**2 * gaussian.spectrum(8) + s**2), axes=(1, 2)).real
        expected = ((eps @ gaussian.COLORS - noise) ** 2).mean((1, 2, 3))
        np.testing.assert_allclose(results["floor_loss"][i], expected, rtol=1e-3)
        stated = float(results["floor"][i])
        assert abs(expected.mean() - stated) < 4 * expected.std() / np.sqrt(60)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with random parameters examined as one that was trained on Gaussian images, and packed."""
    from mechdiff.core.presets import preset

    where = tmp_path_factory.mktemp("gaussian")
    sweep = dataclasses.replace(preset("tiny").sweep, images=2, timesteps=2, nested=True, reference_images=2)
    data = DataConfig(name="gaussian", n_train=4, n_test=8)
    config = dataclasses.replace(preset("tiny"), unet=SMALL, sweep=sweep, data=data)
    denoiser = Denoiser("small", SMALL, SCHEDULE, random_params(SMALL), identity_of(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examine, "load_denoiser", lambda model, name: (denoiser, config, {"steps": 7}))
        choose = choosing.ImageChoice(config, None, where / "cache")
        examine.examine("small", where, choose, config.sweep, 0, where / "subjects" / "small")
    files.write_json(where / "manifest.json", {})
    files.ensure_writable(where / packing.CELLS)
    packing.pack(where / "subjects" / "small", where / packing.CELLS / "other.zip")
    return results_folder.read(where)[1]


def test_examinations_keep_the_floor_and_so_do_packed_ones(network):
    for model in network:
        sweep = model.results.sweep
        assert model.inputs == "held-out Gaussian images" and model.results.data == "gaussian"
        assert (sweep["clean_loss"] > sweep["floor_loss"]).all() and (sweep["floor"] > 0).all()
        clean, loss = effects.losses(sweep, "zero")
        even = np.full((1, *clean.shape), 0.5)
        excess = effects.excess_relative_increase(clean, loss, sweep["floor_loss"].values, even)
        zero = sweep.sel(ablation="zero").astype(np.float64)
        above = (zero["clean_loss"] - zero["floor_loss"]).mean("image")
        expected = 100 * ((zero["loss"] - zero["clean_loss"]).mean("image") / above).mean("t")
        np.testing.assert_allclose(excess[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(network[0].sweep["floor_loss"], network[1].sweep["floor_loss"])
