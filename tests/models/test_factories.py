"""Denoisers of a user's own function: what comes of it, and one line for all that goes wrong."""

import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.models import factories, load

MODULE = "reference.user_network"


def test_a_function_stands_in_the_place_of_a_folder():
    denoiser, config, record = load.load_denoiser(f"{MODULE}:denoiser")
    assert denoiser.name == load.name_of(f"{MODULE}:denoiser") == "user_network.denoiser"
    assert config.data.name == "unknown" and config.diffusion.steps == 100
    facts = record["function"]
    assert facts["parameters"] == 3 * 6 + 3 * 6 + 6 * 6 + 6 * 3 and facts["image_shape"] == [4, 4, 3]
    np.testing.assert_allclose(facts["log_snr"], denoiser.schedule.log_snr)
    assert load.load_denoiser(f"{MODULE}:denoiser", "mine")[0].name == "mine"
    images, condition = load.load_denoiser(f"{MODULE}:with_classes")[2][factories.WITH_IMAGES]
    assert images.shape == (12, 4, 4, 3) and condition.tolist() == [0, 1, 2] * 4


def test_folders_and_buckets_are_no_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/faces", "gs://bucket/run", "faces", "run@100", "a:b:c", "/a:b"):
        assert not factories.is_factory(name)
    assert factories.is_factory("a.b:c")
    (tmp_path / "a.b:c").mkdir()
    assert not factories.is_factory("a.b:c")


@pytest.mark.parametrize(
    "model, expected",
    [
        ("reference.user_netwrok:denoiser", "no module 'reference.user_netwrok'.*PYTHONPATH"),
        (f"{MODULE}:denoisr", "unknown function of reference.user_network 'denoisr'; closest: denoiser"),
        (f"{MODULE}:NOT_A_FUNCTION", "unknown function"),
        (f"{MODULE}:takes_an_argument", "missing 1 required positional argument.*without arguments"),
        (f"{MODULE}:not_a_denoiser", "returns {'params': 3}, which is not a denoiser; return .*wrap"),
        (f"{MODULE}:no_names", "no value of this function has a name; .*checkpoint_name"),
        (f"{MODULE}:shapes_that_do_not_fit", "can't be traced by JAX.*dot_general"),
        (f"{MODULE}:no_jax_function", "can't be traced by JAX.*TracerArrayConversionError"),
    ],
)
def test_what_goes_wrong_is_one_line(model, expected):
    with pytest.raises(ConfigError, match=expected) as raised:
        load.load_denoiser(model)
    assert "\n" not in str(raised.value)


def test_errors_of_a_users_module_name_it(tmp_path, monkeypatch):
    (tmp_path / "broken_network.py").write_text("import absent_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"'broken_network' can't be imported: .*absent_library"):
        load.load_denoiser("broken_network:denoiser")
