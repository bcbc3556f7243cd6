"""The launcher of factor pairs, for networks with classes."""

import dataclasses
import importlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from reference import launching
from reference.networks import SMALL

from mechdiff.core.errors import ConfigError
from mechdiff.sweeps.interchange import PairSet


@pytest.fixture
def launcher():
    module = importlib.import_module("experiments.interchange")
    yield module
    launching.forget(module)


def test_networks_with_classes_are_told_those_of_synthetic_faces_and_others_refused(
    launcher, denoiser, tiny, capsys
):
    network = dataclasses.replace(denoiser, name="labeled", unet=dataclasses.replace(SMALL, classes=2))
    pairs = PairSet(jax.random.key(0), ("glasses",), 4)
    data = dataclasses.replace(tiny.data, classes="skin_brightness")
    labels = launcher._under_classes(network, data, pairs).condition
    assert labels.shape == (4,) and np.isin(labels, [0, 1]).all()
    assert "labeled is told the class of a pair's first face (skin_brightness)" in capsys.readouterr().out
    for other in (dataclasses.replace(data, name="celeba"), SimpleNamespace(name="unknown", classes="")):
        with pytest.raises(ConfigError, match="labeled is conditioned on label, which is not known of the"):
            launcher._under_classes(network, other, pairs)
    assert launcher._under_classes(denoiser, tiny.data, pairs) is pairs
