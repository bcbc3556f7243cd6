"""A user's own function in the place of a model's folder: examined, sampled and reported like a UNet."""

import dataclasses

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from reference import user_network
from reference.results import unrendered

from experiments import _launch, _opening
from mechdiff import report
from mechdiff.circuits import redundancy
from mechdiff.core import keys
from mechdiff.core.config import override
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.models import load
from mechdiff.storage import files, labelled
from mechdiff.study import choosing, controls, examine, inputs, results_folder
from mechdiff.sweeps.sampling import SampleSet, sampling_sweep

CLASSES = "reference.user_network:with_classes"
FEW = ["sweep.images=4", "sweep.reference_images=4", "sweep.timesteps=2"]


@pytest.fixture(scope="module")
def config(tiny):
    return override(dataclasses.replace(tiny, name="functions"), FEW)


def test_a_function_is_swept_and_reported_in_order_of_execution(config, tmp_path, monkeypatch):
    unrendered(monkeypatch)
    choose = choosing.ImageChoice(config, None, tmp_path / "cache")
    for function in ("with_classes", "denoiser"):
        model = f"reference.user_network:{function}"
        where = tmp_path / "subjects" / load.name_of(model)
        examine.examine(load.name_of(model), model, choose, config.sweep, 0, where)
    files.write_json(tmp_path / "manifest.json", {})
    page = report.build(tmp_path).read_text()
    assert "JAX function of reference.user_network:with_classes, 4 × 4 × 3 numbers" in page
    assert "own samples" in page and "The UNet of" not in page
    _, models = results_folder.read(tmp_path)
    (told,) = (model for model in models if model.name == "user_network.with_classes")
    assert list(told.sweep["component"].values) == ["class", "attn.head0", "attn.head1", "mlp"]
    assert told.attention["head"].values.tolist() == ["attn.head0", "attn.head1"]
    assert len(told.log_snr) == 100 and told.parameters == 90
    assert told.sweep["class_label"].values.tolist() == [0, 1, 2, 0]
    # the sweep's clean loss is that of the function called by hand, each image under its own class
    wrapped, images, labels = user_network.with_classes()
    t = int(told.sweep["t"][1])
    key = keys.stream(jax.random.key(0), "scored noise")
    noise_of = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4, 4, 3))))
    noise = np.asarray(noise_of(np.arange(4)))
    signal = np.sqrt(1 / (1 + np.exp(-np.asarray(wrapped.schedule.log_snr)[t])))
    x_t = signal * images[:4] + np.sqrt(1 - signal**2) * noise
    eps = jax.jit(user_network.network)(wrapped.params, x_t, np.full(4, t), labels[:4])
    expected = np.mean((eps - noise) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(told.sweep["clean_loss"].sel(t=t), expected, rtol=1e-4)


def test_a_function_with_init_has_an_untrained_control(config, tmp_path):
    model = "reference.user_network:with_init"
    choose = choosing.ImageChoice(config, None, tmp_path / "cache")
    examined = examine.examine("with_init", model, choose, config.sweep, 0, tmp_path / "with_init")
    noise = keys.stream(jax.random.key(0), "scored noise")
    control = controls.control(examined, config, noise, tmp_path)
    trained = labelled.read(tmp_path / "with_init" / "sweep.zarr")
    assert control["component"].equals(trained["component"])
    assert np.isfinite(control["loss"]).all()
    assert (np.abs(control["clean_loss"] - trained["clean_loss"]) > 1e-3).all()
    attention = controls.control_attention(examined, config, noise)
    assert list(attention["head"].values) == ["attn.head0", "attn.head1"]


def test_pairs_and_samples_are_told_the_classes(config, tmp_path):
    denoiser, _, came_with, eval_set = _opening.opened(config, tmp_path, CLASSES, None)
    others = came_with.reference_set(eval_set.timesteps, eval_set.key)
    assert others.condition.tolist() == [1, 2, 0, 1]
    options = {"config": redundancy.PairConfig(top=1, audit=0)}
    pairs = redundancy.verified_pairs(denoiser, eval_set, others, denoiser.components()[1:], **options)
    assert np.isfinite(pairs["estimate"]).all()
    with pytest.raises(ConfigError, match="takes a condition"):
        redundancy.verified_pairs(
            denoiser, eval_set, came_with.reference, denoiser.components()[2:], **options
        )
    samples = SampleSet([10, 60], 2, eval_set.key, np.array([0, 2]))
    swept = sampling_sweep(denoiser, samples, [(0, 100)], tmp_path)
    assert (swept["distance"].sel(component="mlp") > 0).all()


def test_images_and_conditions_that_do_not_fit_are_refused(config, tmp_path):
    denoiser, images, labels = user_network.with_classes()
    with pytest.raises(DataError, match=r"12 images, but .* = 24; lower them"):
        inputs.accompanying_images(denoiser, override(config, ["sweep.images=20"]).sweep, images, labels)
    with pytest.raises(DataError, match=r"shape \(12, 2, 4, 3\); it takes \(images, 4, 4, 3\)"):
        inputs.accompanying_images(denoiser, config.sweep, images[:, :2], labels)
    for spoiled, message in (
        (images.astype(int), "of type int64; give floats, or bytes"),
        (images * np.nan, "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            inputs.accompanying_images(denoiser, config.sweep, spoiled, labels)
    with pytest.raises(DataError, match=r"return \(denoiser, images, condition\)"):
        inputs.accompanying_images(denoiser, config.sweep, images)
    with pytest.raises(ConfigError, match="for which there is no default"):
        _opening.opened(config, tmp_path, "reference.user_network:classes_without_images", None)


def test_a_launcher_ends_with_one_line(tmp_path, capsys):
    def main(config, workdir):
        _opening.opened(config, workdir, "reference.user_network:not_a_denoiser", None)

    with flagsaver.flagsaver():
        assert _launch.launch(main, ["launcher", "--preset=tiny", f"--workdir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: reference.user_network:not_a_denoiser returns")


def test_a_stored_sweep_is_not_computed_again(config, tmp_path):
    choose = choosing.ImageChoice(config, None, tmp_path / "cache")
    for _ in range(2):
        examine.examine("net", CLASSES, choose, config.sweep, 0, tmp_path / "net")
    assert len(list((tmp_path / "net" / "sweep").glob("*.zarr"))) == 1
    assert labelled.read(tmp_path / "net" / "sweep.zarr").attrs["denoiser"] == "net"
