"""EDM's networks against NVlabs/edm in PyTorch (`make_foreign_reference`): D(x, sigma), classes and none."""

import dataclasses
import json
import math
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
from mechdiff.models.pretrained.edm import init as edm_init

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
    kind = "SongUNet" if name == "edm_ddpmpp" else "DhariwalUNet"
    assert denoiser.network.init == edm_init.initializer(kind, denoiser.params)  # of untrained controls
    sigmas = np.exp(-np.asarray(denoiser.schedule.log_snr, np.float64) / 2)
    np.testing.assert_allclose(sigmas[[0, -1]], [0.002, 80], rtol=1e-4)


def test_bounds_that_bound_no_noise_level_leave_them_open(tmp_path):
    """As EDMPrecond's arguments say by default."""
    bounds = {"sigma_min": 0, "sigma_max": math.inf}
    written(tmp_path, "edm_adm", {"sigma_data": 0.5, "precond": "edm"} | bounds)
    assert {"sigma_min=0.002", "sigma_max=80.0"} <= set(pretrained.read(tmp_path).assumed)


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
            {"network_kwargs": {"class_name": "training.networks.VPPrecond", "model_type": "SongUNet"}},
            {},
            "precond='VPPrecond' is not supported",
        ),
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
        *[
            ({"sigma_data": 0.5, "precond": "edm"} | options, {}, line)
            for options, line in (
                (
                    {"resample_filter": [1, 3, 3, 1]},
                    r"resample_filter=\(1.0, 3.0, 3.0, 1.0\) is not supported",
                ),
                ({"embedding_type": "fourier"}, "embedding_type='fourier' is not supported"),
                ({"encoder_type": "residual"}, "encoder_type='residual' is not supported"),
                ({"decoder_type": "skip"}, "decoder_type='skip' is not supported"),
                ({"model_type": "DhariwalUNet"}, "model_type='DhariwalUNet', tensors say SongUNet"),
                ({"num_blocks": 9}, "num_blocks=9, tensors say 1"),
                ({"model_channels": 999}, "model_channels=999, tensors say 16"),
                ({"channel_mult": [9]}, r"channel_mult=\(9,\), tensors say \(1, 2\)"),
                ({"channel_mult_emb": 2}, "channel_mult_emb=2, tensors say 4"),
                ({"channel_mult_noise": 2}, "channel_mult_noise=2, tensors say 1"),
                ({"attn_resolutions": [16, 8]}, r"attn_resolutions=\(16, 8\), tensors say \(4,\)"),
                ({"augment_dim": 0}, "augment_dim=0, tensors say 9; if .* leave it out"),
                ({"sigma_min": 80, "sigma_max": 0.002}, "sigma_min=80 and sigma_max=0.002"),
                (
                    {"sigma_min": 1, "sigma_max": 1},
                    "sigma_min=1 and sigma_max=1: the first must be the lower",
                ),
            )
        ],
    ],
)
def test_what_can_not_be_read_is_refused(config, extra, line, tmp_path):
    written(tmp_path, "edm_ddpmpp", config, extra)
    with pytest.raises(MechdiffError, match=line):
        pretrained.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "width", "augmented"),
    [("edm_adm", "DhariwalUNet", 64, 0), ("edm_ddpmpp", "SongUNet", 16, 9)],
)
def test_arguments_that_the_tensors_bear_out_are_read_and_the_rest_is_said(
    name, kind, width, augmented, tmp_path
):
    told = {
        "img_resolution": 8, "img_channels": 3, "label_dim": 5, "augment_dim": augmented, "model_type": kind,
        "model_channels": width, "channel_mult": [1, 2], "channel_mult_emb": 4, "channel_mult_noise": 1,
        "num_blocks": 1, "attn_resolutions": [16, 4], "embedding_type": "positional",
        "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
    }  # fmt: skip
    others = {"use_fp16": True, "dropout": 0.13, "label_dropout": 0}
    folder = {"edm_adm": "training.networks", "edm_ddpmpp": "models"}[name]  # of EDM; of a fork
    of_class = {"class_name": f"{folder}.EDMPrecond"}
    trained = {"network_kwargs": of_class | told | others, "betas": [], "loss_kwargs": {"P_mean": -1.2}}
    for config in ({"sigma_data": 0.5, "precond": "edm"} | told | others, trained):
        written(tmp_path, name, config)
        model = pretrained.read(tmp_path)
        assert (model.options["kind"], model.options["sigma_data"]) == (kind, 0.5)
        assert model.notes[-1] == "options without bearing here: use_fp16, dropout, label_dropout"


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    written(tmp_path, "edm_ddpmpp", {})
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.yaml").write_text("sigma_data: 0.5\nprecond: edm\nsigma_min: 2e-3\nsigma_max: 8e1\n")
    levels = pretrained.read(tmp_path)
    assert levels.assumed == ("rho=7.0", "steps=1000")
    assert levels.diffusion.betas[0] == pytest.approx(0.002**2, rel=1e-4)
