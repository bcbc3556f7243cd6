"""Random phases: spectra stay, phases are uniform, and those of faces are not."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from mechdiff.core.config import Preprocessing
from mechdiff.data import synthetic
from mechdiff.data.collection import open_collection
from mechdiff.data.dataset import to_float
from mechdiff.data.images import thumbnail
from mechdiff.data.scrambled import scrambled

RANDOM = Preprocessing(phases="random")


@pytest.fixture(scope="module")
def faces():
    return synthetic.render_bytes(0, 0, 64, 8)


@pytest.fixture(scope="module")
def turned(faces):
    return np.stack([scrambled(face) for face in faces])


def coefficients(images):
    return np.fft.fft2(to_float(images).astype(np.float64), axes=(1, 2))


def test_spectrum_mean_and_colors_stay(faces, turned):
    before, after = coefficients(faces), coefficients(turned)
    off = np.abs(np.abs(after) - np.abs(before))
    size = np.sqrt((np.abs(before[:, 1:, 1:]) ** 2).sum((1, 2, 3)))
    assert np.median(np.sqrt((off[:, 1:, 1:] ** 2).sum((1, 2, 3))) / size) < 0.02
    np.testing.assert_allclose(after[:, 0, 0], before[:, 0, 0], atol=64 / 127.5)  # sums of rounded values
    colors = [np.einsum("nijc,nijd->cd", c, c.conj()).real for c in (before, after)]
    np.testing.assert_allclose(colors[1], colors[0], rtol=0.02)


def uniformity(images):
    """p of Rayleigh's test at each frequency that is not its own opposite, gray; uniform where phases are."""
    angle = np.angle(coefficients(images)[:, :4, 1:4].sum(-1))
    resultant = np.abs(np.exp(1j * angle).mean(0))
    return np.exp(-len(images) * resultant**2).ravel()


def test_phases_are_uniform_and_those_of_faces_are_not(faces, turned):
    assert scipy.stats.kstest(uniformity(turned), "uniform").pvalue > 0.01
    assert scipy.stats.kstest(uniformity(faces), "uniform").pvalue < 1e-3


def test_an_image_decides_its_own_phases(faces):
    first = scrambled(faces[0])
    assert (first == scrambled(faces[0].copy())).all() and (first != faces[0]).any()
    changed = faces[0].copy()
    changed[0, 0, 0] ^= 1
    assert np.abs(scrambled(changed).astype(int) - first).max() > 50


def test_the_setting_acts_on_files_and_arrays_alike_and_says_so(faces):
    expected = to_float(scrambled(faces[0]))
    np.testing.assert_array_equal(to_float(thumbnail(faces[0], 8, "face", RANDOM)), expected)
    collection = open_collection(faces)
    np.testing.assert_array_equal(collection.pixels(0, 8, RANDOM), expected)
    np.testing.assert_array_equal(open_collection(to_float(faces)).pixels(0, 8, RANDOM), expected)
    assert collection.treatment(8, RANDOM) == "random phases" and "random phases" in RANDOM.description
    assert dataclasses.replace(RANDOM, phases="kept") == Preprocessing()
