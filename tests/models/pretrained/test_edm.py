"""EDM's networks against NVlabs/edm in PyTorch (`make_foreign_reference`): D(x, sigma), classes and none."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.make_foreign_reference import LABELS, SIGMAS, noisy
from reference.make_pretrained_reference import draw
from safetensors.numpy import save_file

from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.parameterization import schedule_from_sigmas
from mechdiff.interventions.build import ablate
from mechdiff.models import pretrained
from mechdiff.models.pretrained import builders

REFERENCE = Path(__file__).parents[2] / "reference" / "foreign.npz"
X = np.moveaxis(noisy(), 1, -1)


def written(folder, name: str, config: dict, extra: dict | None = None):
    with np.load(REFERENCE) as stored:
        arrays = {
            key: np.moveaxis(stored[f"{name}/{key}"], -3, -1) for key in ("output", "gradient", "hooked")
        }
        arrays["heads"] = json.loads(str(stored[f"{name}/heads"]))
        state = draw(json.loads(str(stored[f"{name}/shapes"]))) | (extra or {})
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return arrays


@pytest.mark.parametrize("name", ["edm_adm", "edm_ddpmpp"])
def test_the_denoised_image_and_its_gradient_are_those_of_torch(name, tmp_path):
    arrays = written(tmp_path, name, {"sigma_data": 0.5, "precond": "edm"})
    denoiser = builders.denoiser_of(pretrained.read(tmp_path), name)
    sigma = np.array(SIGMAS, np.float32)[:, None, None, None]

    def denoised(x, params):
        f = denoiser.network.fn(
            params, x / np.sqrt(sigma**2 + 0.25), np.log(sigma.ravel()) / 4, np.array(LABELS)
        )
        return 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / np.sqrt(sigma**2 + 0.25) * f

    def half_square(x, params):
        result = denoised(x, params)
        return jnp.sum(result**2) / 2, result

    if name == "edm_adm":  # one of the two, which share their layers: gradients are slow to compile
        gradient, output = jax.jit(jax.grad(half_square, has_aux=True))(X, denoiser.params)
        assert np.abs(np.asarray(gradient) - arrays["gradient"]).max() < 1e-4 * arrays["gradient"].std()
    else:
        output = jax.jit(denoised)(X, denoiser.params)
    assert np.abs(np.asarray(output) - arrays["output"]).max() < 1e-4 * arrays["output"].std()
    types = {component.site.rsplit(".", 1)[-1] for component in denoiser.components()}
    assert types >= {"res", "time", "head", "skip", "class"}
    sigmas = np.exp(-np.asarray(denoiser.schedule.log_snr, np.float64) / 2)
    np.testing.assert_allclose(sigmas[[0, -1]], [0.002, 80], rtol=1e-4)


@pytest.mark.parametrize("name", ["edm_adm", "edm_ddpmpp"])
def test_ablated_heads_are_those_of_hooks(name, tmp_path):
    """D without each head, from the noise that `predict` finds in x / sqrt(1 + sigma^2)."""
    arrays = written(tmp_path, name, {"sigma_data": 0.5, "precond": "edm"})
    made = builders.denoiser_of(pretrained.read(tmp_path), name)
    denoiser = dataclasses.replace(made, schedule=schedule_from_sigmas(SIGMAS))
    sigma = np.array(SIGMAS, np.float32)[:, None, None, None]
    scaled, t = X / np.sqrt(1 + sigma**2), np.arange(len(SIGMAS))

    @jax.jit
    def denoised(intervention):
        return X - sigma * denoiser.predict(intervention, scaled, t, np.array(LABELS))

    for (place, head), expected in zip(arrays["heads"], arrays["hooked"], strict=True):
        half, side, part = re.fullmatch(r"model\.(enc|dec)\.(\d+)x\d+_(\w+)", place).groups()
        gone = ablate(denoiser.identity, [f"{half}{side}.{part}.attn.head{head}"])
        assert np.abs(np.asarray(denoised(gone)) - expected).max() < 1e-4 * expected.std(), (place, head)


@pytest.mark.parametrize(
    ("config", "extra", "line"),
    [
        ({"img_resolution": 8}, {}, "sigma_data is absent"),
        ({"sigma_data": 0.5, "precond": "edm", "img_resolution": 16}, {}, "tensors say 8"),
        ({"sigma_data": 0.5}, {}, "precond is absent"),
        ({"sigma_data": 0.5, "precond": "vp"}, {}, "precond='vp' is not supported"),
        (
            {"sigma_data": 0.5, "precond": "edm"},
            {"enc.4x4_down.conv0.resample_filter": np.zeros((1, 1, 4, 4), np.float32)},
            "FIR",
        ),
        (
            {"sigma_data": 0.5, "precond": "edm"},
            {"model.enc.8x8_conv.weight": np.zeros((8, 4, 3, 3), np.float32)},
            "edm: 4 channels; images have 1 or 3",
        ),
    ],
)
def test_what_can_not_be_read_is_refused(config, extra, line, tmp_path):
    written(tmp_path, "edm_ddpmpp", config, extra)
    with pytest.raises(MechdiffError, match=line):
        pretrained.read(tmp_path)
