"""What is printed of intervals over images says over how many, and cautions where these are few."""

import importlib

import numpy as np
import pytest
import xarray as xr
from reference.launching import forget

from mechdiff.analysis.entropy_correlation import EntropyCorrelation
from mechdiff.analysis.phases import Phases
from mechdiff.api.compare import compared
from mechdiff.api.result import Result
from mechdiff.stats import Interval, units_from


@pytest.fixture
def launcher():
    """`launcher(name)`: its module; its flags are gone afterwards."""
    modules = []

    def imported(name):
        modules.append(importlib.import_module(f"experiments.{name}"))
        return modules[-1]

    yield imported
    for module in modules:
        forget(module)


def test_entropy_says_what_intervals_and_p_values_are_over(launcher):
    entropy = launcher("entropy")
    four, many = units_from(None, 4), units_from(None, 16)
    people = units_from(np.arange(16) % 9, 16)
    assert entropy.title([many]).endswith("intervals over n images, p by shuffled heads, each by itself")
    assert entropy.title([many, four]).endswith(
        "p by shuffled heads, each by itself; n = 4 is few, intervals may be too narrow"
    )
    assert "over n images or people," in entropy.title([many, people])
    ends = {"estimate": np.array(0.76), "low": np.array(-0.9), "high": np.array(0.76)}
    rho = Interval(**ends, confidence=0.95, n=4)
    observed = EntropyCorrelation(rho, rho, p=0.034, p_within=0.2, heads=6)
    assert entropy.row("net", "effect", observed)["n"] == 4
    assert "over 6 heads, p 0.034, n = 4;" in entropy.line("effect", observed)
    assert "fewer than 3 heads change a target at every temperature and" in entropy.line("caused", None)


def test_compare_says_what_n_counts(launcher, capsys):
    dims, loss = ("ablation", "component", "t", "image"), np.random.default_rng(0).uniform(1, 2, (1, 3, 1, 4))
    losses = {"loss": (dims, loss), "change": (dims, loss), "clean_loss": (dims[2:], loss[0, 0])}
    coords = {"ablation": ["zero"], "component": list("abc"), "t": [5]}
    images = xr.Dataset(losses, coords, {"denoiser": "net"})
    people = images.assign_coords(person=("image", [0, 0, 1, 2]))
    print_top = launcher("compare").print_top
    for dataset, n in ((images, "n = 4 images, 3 components"), (people, "n = 3 people, 3 components")):
        result = Result(dataset, "zero")
        print_top(compared(result, result, None))
        told = capsys.readouterr().out
        assert f"{n}: no p can fall below" in told and "clean loss" not in told
    lower = Result(images.assign(loss=images["loss"] / 2, clean_loss=images["clean_loss"] / 2), "zero")
    print_top(compared(Result(images, "zero"), lower, None))
    first = float(images["clean_loss"].mean())
    assert f"clean loss of {first:.3g} before and {first / 2:.3g} after" in capsys.readouterr().out


def test_phases_say_how_many_images_were_resampled(launcher):
    one = np.ones(1)
    found = Phases(
        k=1, starts=(0,), t=np.array([1]), log_snr=one, score=one, drift=one, share=one, gain=one[:, None],
        stepped=0.5, p_order=one, images=16,
    )  # fmt: skip
    line = launcher("phases").line
    assert line("net", "mean", found, units_from(None, 16)).endswith("; n = 16 images")
    few = line("net", "mean", found, units_from(np.arange(16) % 5, 16))
    assert few.endswith("; n = 5 people; n = 5 is few, intervals may be too narrow")
