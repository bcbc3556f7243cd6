"""Consistency models against diffusers in PyTorch (`make_consistency_reference`): D, heads, one step."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.make_consistency_reference import LABELS, SCHEDULER
from reference.make_foreign_reference import SIGMAS, noisy
from reference.make_pretrained_reference import HEADS_OF, draw
from safetensors.numpy import save_file

from mechdiff.api import load
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.parameterization import Parameterization, schedule_from_sigmas
from mechdiff.diffusion.process import q_sample
from mechdiff.interventions import build
from mechdiff.models import pretrained
from mechdiff.models.pretrained import builders, consistency
from mechdiff.sweeps import attention_patterns

REFERENCE = Path(__file__).parents[2] / "reference" / "consistency.npz"
X = np.moveaxis(noisy(), 1, -1)
SIGMA = np.array(SIGMAS, np.float32)[:, None, None, None]
CM = {"_class_name": "CMStochasticIterativeScheduler", **SCHEDULER}


@pytest.fixture(scope="module")
def arrays():
    with np.load(REFERENCE) as stored:
        return dict(stored)


def written(folder, arrays, scheduler=CM):
    config = {"_class_name": "UNet2DModel", **json.loads(str(arrays["config"]))}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    save_file(draw(json.loads(str(arrays["shapes"]))), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def imported(arrays, tmp_path_factory):
    return pretrained.read(written(tmp_path_factory.mktemp("cm"), arrays))


@pytest.fixture(scope="module")
def denoiser(imported):
    """Whose timesteps 0, 1, 2 are the sigmas of the reference."""
    made = builders.denoiser_of(imported, "cm")
    return dataclasses.replace(made, schedule=schedule_from_sigmas(SIGMAS))


@jax.jit
def denoised(denoiser, intervention, x):
    """D(x, sigma), from the noise that `predict` finds in x_t = x / sqrt(1 + sigma^2)."""
    scale = jnp.sqrt(1 + SIGMA**2)
    eps = denoiser.predict(intervention, x / scale, np.arange(3), np.array(LABELS))
    return x - SIGMA * eps


def relative(values, expected):
    expected = np.moveaxis(expected, -3, -1)
    return np.abs(np.asarray(values) - expected).max() / expected.std()


def test_the_denoised_image_and_its_gradient_are_those_of_torch(arrays, denoiser):
    run = lambda x: denoised(denoiser, denoiser.identity, x)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x) ** 2) / 2))(X)
    assert relative(run(X), arrays["table/output"]) < 1e-4
    assert relative(gradient, arrays["table/gradient"]) < 1e-4


def test_ablated_heads_are_those_of_hooks(arrays, denoiser):
    heads = [
        component.name
        for stage in HEADS_OF.values()
        for component in denoiser.components()
        if component.name.startswith(f"{stage}.head")
    ]
    assert len(heads) == len(arrays["table/hooked"])
    assert {f"{stage}.pattern" for stage in HEADS_OF.values()} <= denoiser.identity.gate.keys()
    for name, expected in zip(heads, arrays["table/hooked"], strict=True):
        assert relative(denoised(denoiser, build.ablate(denoiser.identity, [name]), X), expected) < 1e-4


def test_of_an_imported_network_nobody_is_asked_to_name_values(denoiser):
    gate = {site: leaf for site, leaf in denoiser.identity.gate.items() if not site.endswith("pattern")}
    bare = dataclasses.replace(denoiser, identity=dataclasses.replace(denoiser.identity, gate=gate))
    with pytest.raises(MechdiffError, match=r"^cm: this network has no attention with a pattern"):
        attention_patterns.heads_of(bare)


def test_one_step_of_sampling_is_the_denoised_noise(arrays, imported):
    """From x = 80 noise, which is 80 / sqrt(1 + 80^2) of the unit noise that samplers begin with."""
    made = builders.denoiser_of(imported, "cm")
    last, x = np.array([made.schedule.steps - 1]), X[:1] * 80
    scaled = (x / np.sqrt(1 + 80.0**2)).astype(np.float32)
    predict = jax.jit(lambda denoiser, x: denoiser.predict(denoiser.identity, x, last, np.array(LABELS[:1])))
    eps = np.asarray(predict(made, scaled))
    assert relative(np.clip(x - 80 * eps, -1, 1), arrays["table/one_step"]) < 1e-4
    sigmas = np.exp(-np.asarray(made.schedule.log_snr, np.float64) / 2)
    assert 0.002 < sigmas[0] < 0.0021 and abs(sigmas[-1] - 80) < 1e-2
    assert {"res", "time", "head", "skip", "class"} <= {c.component_type for c in made.components()}
    assert imported.options["kind"] == "consistency" and "rho=7.0" not in imported.assumed


def test_an_assumption_is_said_once(arrays, tmp_path, caplog):
    levels = {name: value for name, value in CM.items() if name not in ("rho", "sigma_max")}
    load(written(tmp_path, arrays, levels))
    assert caplog.text.count("ASSUMED") == caplog.text.count("rho=7.0") == 1


FLAGS = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1"}
FLAGS |= {"attention_resolutions": "4", "num_head_channels": 16, "weight_schedule": "karras"}
UNTOLD = {name: value for name, value in FLAGS.items() if name != "weight_schedule"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "training_mode is absent, which decides c_skip and c_out"),
        ({"training_mode": "flow"}, "training_mode='flow' is not supported; only None or 'consistency_dist"),
        ({"training_mode": "edm", "learn_sigma": "True"}, "learn_sigma=True is not supported"),
        ({"training_mode": "edm", "sigma_mx": 80}, "unknown option of guided-diffusion 'sigma_mx'"),
    ],
)
def test_flags_that_leave_the_scalings_open_are_refused(tmp_path, changes, line):
    with np.load(REFERENCE.with_name("pretrained.npz")) as stored:
        state = draw(json.loads(str(stored["classes/shapes"])))
    (tmp_path / "config.json").write_text(json.dumps(FLAGS | changes))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MechdiffError) as error:
        pretrained.read(tmp_path)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({}, False),
        ({"schedule_sampler": "uniform"}, False),
        ({"schedule_sampler": "lognormal"}, True),
        ({"train": {"schedule_sampler": "lognormal"}}, True),
        ({"global_batch_size": 8}, True),
    ],
)
def test_flags_of_its_programs_are_told_from_guided_diffusions(more, known):
    assert consistency.recognizes(UNTOLD | more, {}) == known
    assert "global_batch_size" not in consistency._plain({"global_batch_size": 8})


def test_a_teacher_in_a_section_does_not_decide_its_student(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FLAGS | {"teacher": {"training_mode": "edm"}}))
    with pytest.raises(MechdiffError, match=r"option teacher\.training_mode may be of another network"):
        pretrained.read(tmp_path)


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ({"clip_denoised": False}, "clip_denoised=False is not supported"),
        ({"sigma_data": "half"}, "sigma_data='half' is not a number"),
        ({"prediction_type": "epsilon"}, "unknown option of scheduler CMStochasticIterativeScheduler"),
    ],
)
def test_options_of_the_scheduler_are_checked(arrays, tmp_path, scheduler, line):
    with pytest.raises(MechdiffError, match=line):
        pretrained.read(written(tmp_path, arrays, CM | scheduler))


def test_target_is_the_output_that_gives_the_noise_back():
    """At sigma_min, where every output is as good, what it should return is finite."""
    schedule = schedule_from_sigmas([0.002, 0.1, 5.0])
    kind = Parameterization(output="consistency", time_scale=1000.0)
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 3, 4, 4, 1)).astype(np.float32)
    t = np.arange(3)

    @jax.jit
    def there_and_back(x0, noise):
        target = kind.target(schedule, x0, t, noise)
        return target, kind.to_eps(schedule, q_sample(schedule, x0, t, noise), t, target)

    target, result = map(np.asarray, there_and_back(x0, noise))
    assert np.isfinite(target).all()
    np.testing.assert_allclose(result[1:], noise[1:], atol=2e-4)
