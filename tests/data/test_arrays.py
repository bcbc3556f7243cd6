"""Arrays of images: layouts and ranges told apart, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mechdiff.core.errors import DataError
from mechdiff.data.arrays import as_images, read_array, whole_array

RNG = np.random.default_rng(1)
BYTES = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)
BYTES.flat[:2] = 0, 255
FLOATS = (BYTES / np.float32(127.5) - 1).astype(np.float32)


def test_as_images_leaves_bytes_and_floats_alone():
    for array in (BYTES, FLOATS):
        images, notes = as_images(array, "x")
        np.testing.assert_array_equal(images, array)
        assert images.dtype == array.dtype and notes == []
    for kind in (np.int16, np.int64, np.uint16):
        images, _ = as_images(BYTES.astype(kind), "x")
        assert images.dtype == np.uint8 and (images == BYTES).all()
    np.testing.assert_array_equal(as_images(FLOATS.astype(np.float64), "x")[0], FLOATS)


def test_as_images_moves_channels_last_and_says_so():
    images, notes = as_images(BYTES.transpose(0, 3, 1, 2), "x")
    np.testing.assert_array_equal(images, BYTES)
    assert notes == ["channels moved last"]
    images, notes = as_images(BYTES[..., 0], "x")
    np.testing.assert_array_equal(images, BYTES[..., :1])
    assert notes == ["a channel axis added"]


def test_as_images_scales_a_range_that_is_stated():
    images, notes = as_images(BYTES / np.float32(255), "x", value_range=(0, 1))
    np.testing.assert_allclose(images, FLOATS, atol=1e-6)
    assert notes == ["[0, 1] scaled to [-1, 1]"]
    for other, value_range in ((BYTES.astype(np.uint16) * 16, (0, 4080)), (FLOATS / 2, (-0.5, 0.5))):
        np.testing.assert_allclose(as_images(other, "x", value_range)[0], FLOATS, atol=1e-6)
    np.testing.assert_array_equal(as_images(BYTES // 9, "x", (0, 255))[0], BYTES // 9)
    for ends in ((1, 1), (0, np.inf), (-np.inf, 1), (0, np.nan)):
        with pytest.raises(DataError, match=r"value_range=\(.*\) of x is not \(black, white\)"):
            as_images(np.abs(FLOATS), "x", value_range=ends)
    bright = np.abs(FLOATS)
    np.testing.assert_allclose(as_images(bright, "x", value_range=(-1, 1))[0], bright, atol=1e-7)
    with pytest.raises(DataError, match="outside value_range"):
        as_images(BYTES.astype(np.float32), "x", value_range=(0, 1))


@pytest.mark.parametrize(
    "array, why",
    [
        (BYTES / 255, r"floats in \[0, 1\]: is black 0 or -1\?"),
        (BYTES.astype(np.float32), r"floats in \[0, 255\]; expected \[-1, 1\]"),
        (np.where(FLOATS > -0.09, FLOATS, -0.09), r"floats in \[-0.09, 1\]: is black 0 or -1\?"),
        (2 * FLOATS, r"floats in \[-2, 2\]; expected"),
        (FLOATS / 2, r"floats in \[-0.5, 0.5\]: is white 1 or 0.5\?"),
        (BYTES // 16, r"whole numbers in \[0, 15\]; expected \[0, 255\]"),
        (np.where(FLOATS > 0.5, np.nan, FLOATS), "NaN or Inf"),
        (BYTES.astype(int) - 128, r"whole numbers in \[-128, 127\]; expected \[0, 255\]"),
        (BYTES.astype(int) * 257, r"whole numbers in \[0, 65535\]"),
        (BYTES.astype(int) // 128, r"whole numbers in \[0, 1\]"),
        (BYTES // 128, r"whole numbers in \[0, 1\]"),
        (BYTES[0].transpose(2, 0, 1), r"shape \(3, 8, 8\): 3 gray images, or one of 3 channels\?"),
        (BYTES > 9, "holds bool"),
        (BYTES.astype(str), "holds <U"),
        (BYTES[0], r"shape \(8, 8, 3\); expected \(images, height, width, channels\)"),
        (BYTES[..., :2], r"shape \(5, 8, 8, 2\)"),
        (np.zeros((5, 4, 8, 8), np.uint8), r"shape \(5, 4, 8, 8\)"),
        (np.zeros(3), r"shape \(3,\)"),
    ],
)
def test_as_images_refuses_what_leaves_a_doubt(array, why):
    with pytest.raises(DataError, match=why):
        as_images(array, "x")


def test_read_array_takes_npy_and_the_images_of_npz(tmp_path):
    np.save(tmp_path / "a.npy", BYTES)
    np.savez(tmp_path / "sampled.npz", BYTES, np.arange(5))  # as guided-diffusion saves samples and classes
    np.savez(tmp_path / "named.npz", masks=BYTES[::-1], images=BYTES)
    np.savez(tmp_path / "single.npz", whatever=BYTES)
    for name in ("a.npy", "sampled.npz", "named.npz", "single.npz"):
        np.testing.assert_array_equal(read_array(tmp_path / name), BYTES)


def test_read_array_refuses_what_it_can_not_read(tmp_path):
    np.savez(tmp_path / "several.npz", BYTES, BYTES)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "several.npz").read_bytes()[:500])
    (tmp_path / "renamed.npy").write_bytes((tmp_path / "several.npz").read_bytes())
    (tmp_path / "renamed.npz").write_bytes((tmp_path / "pickled.npy").read_bytes())
    for name, why in {
        "renamed.npy": "is an .npz file; give it that ending",
        "renamed.npz": "is an .npy file; give it that ending",
        "several.npz": "2 arrays .*call that of the images 'images'",
        "pickled.npy": "can't be read as an array",
        "text.npy": "can't be read as an array",
        "cut.npz": "can't be read as an array",
    }.items():
        with pytest.raises(DataError, match=f"{name} .*{why}|{name}.*{why}"):
            read_array(tmp_path / name)


def test_images_of_pillow_are_read_as_files_are():
    color = Image.fromarray(BYTES[0])
    palette, turned = color.quantize(8), color.copy()
    turned.getexif()[0x0112] = 3
    array = whole_array([color, palette, turned])
    np.testing.assert_array_equal(array[0], BYTES[0])
    np.testing.assert_array_equal(array[1], np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(array[2], BYTES[0][::-1, ::-1])
    assert whole_array([color.convert("L")]).shape == (1, 8, 8, 1)
    with pytest.raises(DataError, match="image 1 of the list is of mode HSV"):
        whole_array([color, color.convert("HSV")])


def test_what_is_no_array_is_refused_in_one_line():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nUse tensor.detach()")

    with pytest.raises(DataError, match=r"can't be read as a NumPy array .*requires grad. Use tensor.detach"):
        whole_array(Tensor())
    with pytest.raises(DataError, match="is a list of paths; give the folder"):
        whole_array(["a.png", Path("b.png")])
