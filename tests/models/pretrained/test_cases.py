"""Foreign inputs that were once misread, in `../shared/cases` beside the checkout; skipped where absent."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from reference.networks import identity_of

from mechdiff.core.errors import MechdiffError
from mechdiff.data import celeba
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Imported, Stated
from mechdiff.models.unet import apply_unet, denoise

ROOT = Path(__file__).parents[3]
CASES = Path(os.environ.get("MECHDIFF_CASES", ROOT.parent / "shared" / "cases"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is absent")
predict = jax.jit(apply_unet, static_argnums=0)


@functools.cache
def expected(case: str) -> dict[str, np.ndarray]:
    with np.load(CASES / case / "expected.npz") as stored:
        return dict(stored)


def output(model: Imported, case: str, times: str = "t") -> np.ndarray:
    """The network's output, NCHW, on the input of a case."""
    x, t = np.moveaxis(expected(case)["x"], 1, -1), np.asarray(expected(case)[times], np.int32)
    return np.moveaxis(np.asarray(predict(model.unet, model.params, identity_of(model.unet), x, t)), -1, 1)


def assert_equal(values: np.ndarray, right: np.ndarray) -> None:
    assert np.abs(values - right).max() < 1e-5 * right.std()


RIGHT = [  # folder, what is stated beside it, name of the right output
    ("01-adm-yaml-flags", {}, "output"),
    ("02-adm-flags-as-text", {}, "output"),
    ("03-iddpm-4000-steps", {"rescale_timesteps": True}, "output_if_rescaled"),
    ("03-iddpm-4000-steps", {"dialect": "guided-diffusion"}, "output_if_not_rescaled"),
    ("05-raw-and-ema/checkpoint-500", {}, "output_unet"),
    ("05-raw-and-ema/checkpoint-500", {"weights": "ema"}, "output_unet_ema"),
    ("05-raw-and-ema/checkpoint-500/unet_ema", {}, "output_unet_ema"),
    ("06-learned-variance/model", {}, "output"),
    ("07-attention-over-one-key/model", {}, "output"),
]


@pytest.mark.parametrize(("folder", "stated", "name"), RIGHT)
def test_outputs_are_those_of_torch(folder, stated, name):
    model = pretrained.read(CASES / folder, Stated(**stated))
    case = folder.split("/")[0]
    assert_equal(output(model, case), expected(case)[name])


def test_rescaled_timesteps_are_real_numbers():
    case = "03-iddpm-4000-steps"
    model = pretrained.read(CASES / case, Stated(rescale_timesteps=True))
    assert_equal(output(model, case, "t_odd"), expected(case)["output_if_rescaled_odd"])
    with pytest.raises(MechdiffError, match="rescale_timesteps is absent, and with diffusion_steps=4000"):
        pretrained.read(CASES / case)


@pytest.mark.parametrize("folder", ["pipeline", "pipeline/unet"])
def test_the_scheduler_one_folder_up_is_read(folder):
    case = "04-unet-of-a-pipeline"
    model = pretrained.read(CASES / case / folder)
    assert (model.unet.prediction, model.diffusion.schedule) == ("v_prediction", "cosine")
    np.testing.assert_allclose(
        model.schedule.alphas_bar[np.array([30, 700])], [0.996466, 0.201869], atol=1e-6
    )
    x, t = np.moveaxis(expected(case)["x"], 1, -1), np.asarray(expected(case)["t"], np.int32)
    epsilon = denoise(model.unet, model.schedule, model.params, identity_of(model.unet), x, t)
    assert_equal(np.moveaxis(np.asarray(epsilon), -1, 1), expected(case)["epsilon"])


def test_celeba_of_kaggle_is_read():
    source = celeba.open_source(str(CASES / "08-kaggle-celeba" / "KAGGLE"))
    assert np.bincount(source.splits).tolist() == [14, 5, 5]
    assert [int(source.labels[name].sum()) for name in ("Smiling", "Male")] == [16, 10]


def test_the_script_that_edits_an_intervention_is_refused():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(CASES / "09-edited-intervention" / "case.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("raises: assignment destination is read-only"), done.stderr
