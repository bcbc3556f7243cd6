"""The check on load, against its closed form, and with networks that are right, wrong and untrained."""

import dataclasses

import jax
import numpy as np
import pytest

from mechdiff.core.config import DiffusionConfig
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.study import load_check
from mechdiff.study.eval_images import EvalImages

SCHEDULE = make_schedule(DiffusionConfig(steps=50))
SPREAD = 0.3
RNG = np.random.default_rng(0)
IMAGES = (SPREAD * RNG.standard_normal((16, 8, 8, 1))).astype(np.float32)
GIVEN = EvalImages(IMAGES, IMAGES[:1], "white noise")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wiener:
    """The best denoiser of white images of a standard deviation (if it is told the right one)."""

    params: np.ndarray
    schedule: object = SCHEDULE
    identity: object = None
    name: str = dataclasses.field(default="wiener", metadata=dict(static=True))

    network, stages = None, None

    @property
    def image_shape(self):
        return 8, 8, 1

    def components(self, channel_groups: int = 0):
        return ()

    def unit_axis(self, site):
        return -1

    def captured(self, intervention, x_t, t, condition=None, *, collection="sites"):
        return self.predict(intervention, x_t, t, condition), {}

    def digests(self):
        return {}

    def predict(self, intervention, x_t, t, condition=None):
        abar = self.schedule.alphas_bar[t][:, None, None, None]
        variance = abar * self.params**2 + 1 - abar
        return (1 - abar) ** 0.5 / variance * x_t


class ChannelsFirst(Wiener):
    image_shape = 3, 8, 8


def guessed(timesteps):
    abar = np.asarray(SCHEDULE.alphas_bar, np.float64)[list(timesteps)]
    variance = IMAGES.astype(np.float64).var()
    return abar * variance / (abar * variance + 1 - abar)


def record(scale=1.0):
    timesteps = [1, 10, 40]
    return {"levels": timesteps, "test_loss_by_level": (scale * guessed(timesteps)).tolist()}


def test_guess_is_the_loss_of_the_wiener_filter():
    checked = load_check.check(Wiener(np.float32(SPREAD)), GIVEN)
    np.testing.assert_allclose(checked.guess, guessed(checked.timesteps), rtol=1e-6)
    # 16 x 64 draws: a relative standard error of sqrt(2 / 1024) = 0.044 at each timestep
    np.testing.assert_allclose(checked.loss, checked.guess, rtol=0.18)
    assert checked.of_guess == pytest.approx(1, abs=0.1)
    colors = IMAGES[..., 0].reshape(4, 4, 8, 8)[:, :3] * np.array([1, 2, 3])[:, None, None] + 0.5
    last = Wiener(np.float32(1)), np.moveaxis(colors, 1, -1)
    first = ChannelsFirst(np.float32(1)), colors
    guesses = [load_check.guess(*given, np.arange(3)) for given in (last, first)]
    np.testing.assert_allclose(*guesses, rtol=1e-9)
    assert checked.verdict in ("no record", "no better than a guess")


def test_a_network_as_good_as_its_record_is_told_so():
    better = load_check.check(Wiener(np.float32(SPREAD)), GIVEN, record())
    better = dataclasses.replace(
        better, of_guess=better.of_guess / 2
    )  # as that of a network that has learned
    assert better.verdict == "as recorded" and abs(better.ratio - 1) < 4 * better.ratio_error
    assert "of that in its record" in better.summary and "preprocessing" not in better.summary


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_network_unlike_its_record_is_told_so(scale):
    checked = load_check.check(Wiener(np.float32(SPREAD)), GIVEN, record(scale))
    checked = dataclasses.replace(checked, of_guess=checked.of_guess / 2)
    assert checked.ratio == pytest.approx(1 / scale, rel=0.2)
    assert checked.verdict == "unlike its record" and "of another kind" in checked.summary


def test_a_misread_network_is_no_better_than_a_guess():
    checked = load_check.check(Wiener(np.float32(20.0)), GIVEN, record())
    assert checked.of_guess > 1.5 and checked.verdict == "no better than a guess"
    assert "noise schedule, prediction, range of values" in checked.summary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flat(Wiener):
    """A good denoiser of images of one gray value each, but for a small error of what it predicts."""

    schedule: object = make_schedule(DiffusionConfig(steps=1000))  # log-SNR from 9 to -10

    def predict(self, intervention, x_t, t, condition=None):
        abar = self.schedule.alphas_bar[t][:, None, None, None]
        in_epsilon, in_sample = self.params
        gain = abar**0.5 * SPREAD**2 / (abar * SPREAD**2 + (1 - abar) / 64)
        x0 = gain * x_t.mean((1, 2, 3), keepdims=True) + in_sample
        return (x_t - abar**0.5 * x0) / (1 - abar) ** 0.5 + in_epsilon


@pytest.mark.parametrize("errors", [(0.04, 0.0), (0.0, 0.08)], ids=["epsilon", "sample"])
def test_small_errors_in_the_tails_are_no_alarm(errors):
    """Of the noise where it is nearly all there is, or of the image where it is."""
    flat = np.ones((16, 8, 8, 1), np.float32) * IMAGES[:, :1, :1]
    checked = load_check.check(Flat(np.float32(errors)), EvalImages(flat, flat[:1], "flat"))
    assert max(np.array(checked.loss) / checked.guess) > 2
    assert checked.of_guess < 0.7 and checked.verdict == "no record"


def test_to_dict_is_plain():
    saved = load_check.check(Wiener(np.float32(SPREAD)), GIVEN, record()).to_dict()
    assert saved["verdict"] in saved["words"] or saved["verdict"] == "as recorded"
    assert all(isinstance(value, int | float | str | tuple | None) for value in saved.values())
    assert all(isinstance(number, int | float) for number in saved["loss"] + saved["recorded"])
