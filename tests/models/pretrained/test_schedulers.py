"""Schedulers of diffusers: noise levels, clipping, and what is said of both."""

import numpy as np
import pytest

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.pretrained.diffusers import schedulers


@pytest.mark.parametrize(
    ("options", "clip", "note"),
    [
        ({"sample_max_value": 1.0, "clip_sample": False}, 1, "sample_max_value=1 clips predicted images to"),
        ({"clip_sample": True, "clip_sample_range": 3}, 1, "sample_max_value=1 clips predicted images to"),
        ({"sample_max_value": 4.0, "clip_sample": False}, 1, "samples are not thresholded here"),
        ({"sample_max_value": None}, 1, "samples are not thresholded here"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "sample_max_value": 2.5},
            1,
            "are not thresholded here",
        ),
        ({"_class_name": "TCDScheduler", "sample_max_value": 2.5}, 0, "without bearing here: thresholding"),
    ],
)
def test_thresholding_takes_the_place_of_clipping_and_is_said(options, clip, note):
    """As `step` of diffusers 0.42: `if thresholding: ... elif clip_sample: ...`; TCD reads neither."""
    read = schedulers.read(options | {"thresholding": True, "dynamic_thresholding_ratio": 0.9})
    assert read.clip == clip and any(note in line for line in read.notes)
    assert ("without bearing" in note) == any("without bearing" in line for line in read.notes)
    plain = schedulers.read(options | {"thresholding": False})
    assert not any("threshold" in line or "without bearing" in line for line in plain.notes)


def test_clipping_is_what_the_scheduler_says():
    assert schedulers.read({"clip_sample": False}).clip == 0
    assert schedulers.read({"clip_sample": True, "clip_sample_range": 2}).clip == 2
    assert schedulers.read({}).clip == schedulers.read({"_class_name": "DDIMScheduler"}).clip == 1
    for name in ("PNDM", "LCM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        options = {"_class_name": f"{name}Scheduler"}
        assert schedulers.read(options).clip == 0
        assert schedulers.read(options | {"clip_sample": True}).clip == 1  # made from one that clips


def test_every_class_with_betas_has_its_own_defaults():
    assert schedulers.read({"_class_name": "EulerDiscreteScheduler"}).diffusion == DiffusionConfig()
    lcm = schedulers.read({"_class_name": "LCMScheduler"}).diffusion
    assert (lcm.schedule, lcm.beta_start, lcm.beta_end) == ("scaled_linear", 0.00085, 0.012)


def test_before_there_were_prediction_types():
    assert schedulers.read({"predict_epsilon": False}).prediction == "sample"
    with pytest.raises(MechdiffError, match="contradict each other; leave out the one that is wrong"):
        schedulers.read({"predict_epsilon": False, "prediction_type": "epsilon"})
    with pytest.raises(MechdiffError, match="predict_epsilon=True and prediction_type='sample'"):
        schedulers.read({"predict_epsilon": True, "prediction_type": "sample"})
    assert schedulers.read({"predict_epsilon": True, "prediction_type": "epsilon"}).prediction == "epsilon"


def test_trained_betas_are_the_noise_levels():
    betas = [0.1, 0.2, 0.3]
    diffusion = schedulers.read({"trained_betas": betas, "num_train_timesteps": 3}).diffusion
    np.testing.assert_allclose(
        make_schedule(diffusion).alphas_bar, np.cumprod(1 - np.array(betas)), rtol=1e-6
    )
    assert schedulers.read(schedulers.write(diffusion, "epsilon")).diffusion == diffusion


@pytest.mark.parametrize("named", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_rescaled_betas_end_without_signal(named):
    """Against algorithm 1 of Lin et al. 2024 in float64; the last level keeps 2^-24."""
    options = {"beta_schedule": named, "num_train_timesteps": 50}
    plain = np.asarray(make_schedule(schedulers.read(options).diffusion).alphas_bar, np.float64)
    told = schedulers.read(options | {"rescale_betas_zero_snr": True})
    bar = np.asarray(make_schedule(told.diffusion).alphas_bar, np.float64)
    root = np.sqrt(plain)
    right = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(bar[:-1], right[:-1], rtol=1e-4, atol=1e-6)
    assert bar[-1] == pytest.approx(2.0**-24, rel=1e-3)
    assert "keeps a share of 5.96e-08 (not 0" in told.notes[0]


@pytest.mark.parametrize(
    ("name", "steps", "note"),
    [
        ("EulerDiscrete", 50, "keeps a share of 2^-24: diffusers' own bound"),
        (
            "UniPCMultistep",
            1000,
            "keeps a share of 1.05e-09, a quarter of the level before; diffusers keeps 2^-24",
        ),
        ("DDIM", 1000, "keeps a share of 1.05e-09 (not 0"),
    ],
)
def test_what_the_last_level_keeps_is_said_as_it_is(name, steps, note):
    options = {
        "_class_name": f"{name}Scheduler",
        "num_train_timesteps": steps,
        "rescale_betas_zero_snr": True,
    }
    told = schedulers.read(options)
    assert any(note in line for line in told.notes)
    kept = float(make_schedule(told.diffusion).alphas_bar[-1])
    assert kept == pytest.approx(2.0**-24 if steps == 50 else 1.05e-9, rel=1e-2)


def test_sigmoid_betas_against_their_formula():
    options = {"beta_schedule": "sigmoid", "num_train_timesteps": 5, "beta_start": 0.1, "beta_end": 0.3}
    right = [0.1 + 0.2 / (1 + np.exp(-x)) for x in (-6, -3, 0, 3, 6)]
    np.testing.assert_allclose(schedulers.read(options).diffusion.betas, right)


@pytest.mark.parametrize(
    ("name", "shares"),  # of the signal, as diffusers 0.42 has them
    [
        ("laplace", [0.76574928, 0.70746017, 0.64391613, 0.03162276]),
        ("exp", [0.04978704, 0.00247875, 0.00012340963, 6.1442006e-06]),
    ],
)
def test_schedules_by_their_signal_are_those_of_diffusers(name, shares):
    read = schedulers.read({"beta_schedule": name, "num_train_timesteps": 4})
    np.testing.assert_allclose(np.cumprod(1 - np.array(read.diffusion.betas)), shares, rtol=1e-5)
    assert not any("beta_start" in note for note in read.notes)
