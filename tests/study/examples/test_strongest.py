"""Images of the strongest activation, against activations made by hand."""

import dataclasses

import numpy as np

from mechdiff.data import to_bytes
from mechdiff.study.examples import strongest


def test_strongest_images_have_the_largest_activation(examined, shown):
    denoiser, images = examined[0].denoiser, examined[0].images
    site = np.array([[[1.0, 0, 0, 5]], [[2.0, 0, 0, 0]], [[-3.0, 0, 0, 0]]])  # image, position, channel
    first = dataclasses.replace(denoiser.components()[0], site="down0.block0.res", index=(0, 2))
    size = strongest.root_mean_square(denoiser, first, site)
    np.testing.assert_allclose(size, np.array([1, 2, 3]) / np.sqrt(2))
    for row, numbers in zip(shown["strongest"].values, shown["strongest_image"].values, strict=True):
        np.testing.assert_array_equal(row, to_bytes(images.scored[numbers]))
