"""Classes by sub-folder or label, condition images by name: what a conditioned network is told of files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from reference.networks import SMALL, identity_of

from mechdiff.core.config import DiffusionConfig, SweepConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.study.condition_sources import CLASS_NAMES, with_class_names
from mechdiff.study.condition_sources import ConditionSources as Sources
from mechdiff.study.inputs import images_from

COUNT, SIDE = 6, SMALL.image_size
SCHEDULE = make_schedule(DiffusionConfig(steps=4))
CONFIG = SweepConfig(ablations=("zero",), images=4, timesteps=1, reference_images=2)
FOLDERS = ("cats", "dogs", "eels")


def network(**changes) -> Denoiser:
    """A network that is never run: what it takes is all that counts here."""
    unet = dataclasses.replace(SMALL, **changes)
    return Denoiser("net", unet, SCHEDULE, {}, identity_of(SMALL))


CLASSES = network(classes=3)
LARGER = network(condition_channels=3)


def image(number: int, side: int = SIDE) -> np.ndarray:
    """Its first pixel holds its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    pixels[0, 0] = number
    return pixels


def number_of(pixels: np.ndarray) -> int:
    return round((float(pixels[0, 0, 0]) + 1) * 127.5)


@pytest.fixture
def folder(tmp_path):
    """Two images in each of three sub-folders: 0 and 3 are cats, 1 and 4 dogs, 2 and 5 eels."""
    for number in range(COUNT):
        path = tmp_path / "images" / FOLDERS[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(path)
    return tmp_path / "images"


def labels_of(chosen) -> dict[int, int]:
    """Number of each image -> its label, of those scored and those for reference."""
    pixels = np.concatenate([chosen.scored, chosen.reference])
    labels = np.concatenate([chosen.condition, chosen.reference_condition])
    return {number_of(p): int(label) for p, label in zip(pixels, labels, strict=True)}


def test_sub_folders_are_matched_to_the_class_names_of_the_model(folder):
    sources = with_class_names({CLASS_NAMES: ["eels", "cats", "dogs"]}, Sources())
    chosen = images_from(folder, CLASSES, CONFIG, sources=sources)
    assert labels_of(chosen) == {0: 1, 3: 1, 1: 2, 4: 2, 2: 0, 5: 0}
    assert "classes by sub-folder" in chosen.label and chosen.facts["conditions"] == (
        "classes by sub-folder",
    )


def test_classes_are_stated_where_the_model_names_none(folder):
    stated = images_from(folder, CLASSES, CONFIG, sources=Sources(classes="cats=2,dogs=0,eels=3"))
    assert labels_of(stated) == {0: 2, 3: 2, 1: 0, 4: 0, 2: 3, 5: 3}  # 3: no class
    single = images_from(folder, CLASSES, CONFIG, sources=Sources(classes="1", names=FOLDERS))
    assert set(labels_of(single).values()) == {1} and "each as class 1 (dogs)" in single.label


@pytest.mark.parametrize("labels", [np.array([0, 1, 2, 0, 1, 2]), np.array(FOLDERS * 2)])
@pytest.mark.parametrize("names", [("images", "labels"), ("x_train", "y_train"), ("X", "Labels")])
def test_labels_of_an_npz_file(tmp_path, labels, names):
    pixels = np.stack([image(number) for number in range(COUNT)])
    np.savez(tmp_path / "a.npz", **dict(zip(names, (pixels, labels), strict=True)))
    chosen = images_from(tmp_path / "a.npz", CLASSES, CONFIG, sources=Sources(names=FOLDERS))
    assert labels_of(chosen) == {number: number % 3 for number in range(COUNT)}
    assert "classes by label" in chosen.label
    np.savez(tmp_path / "b.npz", images=pixels, Labels=labels[::-1], labels=labels)  # the usual spelling
    assert labels_of(images_from(tmp_path / "b.npz", CLASSES, CONFIG, sources=Sources(names=FOLDERS))) == {
        number: number % 3 for number in range(COUNT)
    }
    for name, values, line in (("ids", labels, "holds no labels"), ("labels", labels[:, None], "of shape")):
        np.savez(tmp_path / "b.npz", images=pixels, **{name: values})
        with pytest.raises(MechdiffError, match=line):
            images_from(tmp_path / "b.npz", CLASSES, CONFIG, sources=Sources(names=FOLDERS))


def test_condition_images_are_paired_by_name_and_enlarged(folder, tmp_path):
    conditions = tmp_path / "small"
    for number in range(COUNT):
        path = conditions / FOLDERS[number % 3] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number, SIDE // 2)).save(path)
    chosen = images_from(folder, LARGER, CONFIG, sources=Sources(conditions=str(conditions)))
    for pixels, shown in zip(chosen.scored, chosen.condition, strict=True):
        small = image(number_of(pixels), SIDE // 2) / 127.5 - 1
        np.testing.assert_allclose(shown, bilinear(small), atol=1e-6)
    assert "condition images of small (sha256 " in chosen.label


def bilinear(small: np.ndarray) -> np.ndarray:
    """Twice as large, in float64, by pixel centers: PyTorch's `interpolate` without aligned corners."""
    places = np.clip((np.arange(SIDE) + 0.5) / 2 - 0.5, 0, SIDE // 2 - 1)
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, SIDE // 2 - 1), (places - low)[:, None, None]
    rows = small[low] * (1 - share) + small[high] * share
    share = share.reshape(1, -1, 1)
    return rows[:, low] * (1 - share) + rows[:, high] * share


def test_condition_images_of_arrays_are_paired_by_position(tmp_path):
    pixels = np.stack([image(number) for number in range(COUNT)])
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", 255 - pixels)
    chosen = images_from(
        tmp_path / "a.npy", LARGER, CONFIG, sources=Sources(conditions=str(tmp_path / "b.npy"))
    )
    np.testing.assert_allclose(chosen.condition, -np.asarray(chosen.scored), atol=1e-6)


def copied(folder):
    (folder / "dogs" / "again.png").write_bytes((folder / "cats" / "0.png").read_bytes())


def loose(folder):
    (folder / "cats" / "0.png").rename(folder / "0.png")
    (folder / "cats" / "3.png").rename(folder / "3.png")


REFUSED = [
    (CLASSES, Sources(), None, "sub-folder 'cats': which of 3 classes it is, is not known (the model's"),
    (CLASSES, Sources(names=("cats", "dogs", "x")), None, "state it: --classes=eels=NUMBER"),
    (CLASSES, Sources(classes="cats=0,dogs=9,eels=1"), None, "--classes: dogs=9 is out of range; classes"),
    (CLASSES, Sources(classes="cats"), None, "--classes=cats is neither NAME=NUMBER,NAME=NUMBER nor"),
    (CLASSES, Sources(classes="7"), None, "--classes=7 is out of range"),
    (CLASSES, Sources(names=FOLDERS), copied, "are one image in two classes"),
    (CLASSES, Sources(names=FOLDERS), loose, "lie in no sub-folder"),
    (LARGER, Sources(), None, "an image of 3 channels; give one for each image: --conditions=FOLDER"),
    (LARGER, Sources(conditions="nowhere"), None, "no folder or file 'nowhere'"),
    (LARGER, Sources(conditions="a.npy"), None, "are a folder and a file; both must be"),
    (network(condition_channels=4), Sources(conditions="."), None, "conditioned on 4 channels; files hold 1"),
    (network(), Sources(classes="1"), None, "--classes has no effect on net, which takes no condition"),
    (network(class_embedding="identity"), Sources(), None, "makes of an array and its condition"),
]  # fmt: skip


@pytest.mark.parametrize(("denoiser", "sources", "spoil", "expected"), REFUSED)
def test_what_can_not_be_told_is_refused_in_one_line(folder, denoiser, sources, spoil, expected):
    if spoil is not None:
        spoil(folder)
    with pytest.raises(MechdiffError) as error:
        images_from(folder, denoiser, CONFIG, sources=sources)
    line = str(error.value)
    assert expected in line and "\n" not in line and len(line.replace(str(folder), "")) <= 300


def test_a_condition_image_that_is_missing_is_named(folder, tmp_path):
    (tmp_path / "other").mkdir()
    Image.fromarray(image(9)).save(tmp_path / "other" / "9.png")
    with pytest.raises(MechdiffError, match=r"other holds no condition image for .*png; it must"):
        images_from(folder, LARGER, CONFIG, sources=Sources(conditions=str(tmp_path / "other")))
