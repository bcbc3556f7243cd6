"""Folders of images: what is read, how they are split, and one line for everything that is wrong."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mechdiff import data
from mechdiff.core.config import DataConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data import folder
from mechdiff.data.celeba import PARTITION
from mechdiff.data.celeba_folder import celeba_folder
from mechdiff.data.classes import class_labels
from mechdiff.data.collection import open_collection

SIZE = 8


def draw(number: int) -> np.ndarray:
    """An image that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def write(place, numbers, pattern="{}.png"):
    place.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = place / pattern.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(number)).save(path)
    return place


def load(path, part="train", **settings):
    config = DataConfig(name="folder", path=str(path), n_train=0, n_test=0, **settings)
    return data.load(config, SIZE, part, 0, None)


def contents(path, **settings):
    """Bytes of the images of each split."""
    splits = [load(path, split, **settings) for split in data.SPLITS]
    return [{image.tobytes() for image in split.images} for split in splits]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write(tmp_path_factory.mktemp("drawn"), range(60))


def test_the_split_is_a_partition_of_about_the_shares_asked_for(drawn):
    train, validation, test = contents(drawn)
    everything = {draw(number).tobytes() for number in range(60)}
    assert train | validation | test == everything and len(train) + len(validation) + len(test) == 60
    assert 40 <= len(train) <= 56
    half = contents(drawn, held_out=0.5)
    assert len(half[0]) < len(train) and half[0] != contents(drawn, held_out=0.5, split_seed=1)[0]


def test_drawn_split_keeps_its_shares():
    """20,000 draws: shares within 4 standard errors."""
    splits = [folder.drawn_split(f"{number:064x}", 3, 0.2) for number in range(20_000)]
    shares = np.bincount(splits, minlength=3) / 20_000
    expected = np.array([0.8, 0.1, 0.1])
    assert (abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)).all()


def test_the_split_stays_where_files_are_added_renamed_and_moved(drawn, tmp_path):
    before = contents(drawn)
    other = tmp_path / "other"
    for index, path in enumerate(sorted(drawn.iterdir())):
        target = other / f"sub{index % 3}" / f"z{60 - index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    renamed = load(other)
    np.testing.assert_array_equal(renamed.images, load(drawn).images)
    assert renamed.digest == load(drawn).digest
    write(other, range(100, 120))
    after = contents(other)
    for earlier, later in zip(before, after, strict=True):
        assert earlier <= later
    assert load(other).digest != load(drawn).digest


def test_equal_files_are_kept_once_and_on_one_side(tmp_path, capsys):
    place = write(tmp_path, range(30))
    for number in range(30):
        shutil.copy(place / f"{number}.png", place / f"copy{number}.png")
    splits = [load(place, split) for split in data.SPLITS]
    assert sum(map(len, splits)) == 30
    assert capsys.readouterr().err == f"{place}: 30 equal images left out\n"
    assert len(set().union(*(set(split.digests) for split in splits))) == 30


def test_sub_folders_called_train_and_test_are_the_split(tmp_path, capsys):
    write(tmp_path / "Train", range(6))
    write(tmp_path / "val", range(4, 9))  # 4 and 5 are in training too
    train, test = load(tmp_path), load(tmp_path, "test")
    assert "2 equal images left out, 2 of them held-out copies of training images" in capsys.readouterr().err
    assert {image.tobytes() for image in train.images} == {draw(number).tobytes() for number in range(6)}
    assert {image.tobytes() for image in test.images} == {draw(number).tobytes() for number in (6, 7, 8)}
    write(tmp_path / "test", [20])
    assert len(load(tmp_path, "test")) == 1 and len(load(tmp_path, "validation")) == 3
    assert contents(tmp_path, split="digest", held_out=0.5)[0] != {image.tobytes() for image in train.images}


def test_images_beside_train_and_test_are_not_guessed_about(tmp_path):
    write(tmp_path / "train", range(3))
    write(tmp_path / "Test", range(3, 6))
    write(tmp_path / "dev", range(6, 9))
    with pytest.raises(DataError, match="has sub-folders test, train, but images in dev too; move these"):
        load(tmp_path)
    assert len(load(tmp_path, split="digest")) > 3


def test_split_by_folders_needs_them(drawn):
    with pytest.raises(
        DataError, match="split=folders needs all images in sub-folders train, and val or test"
    ):
        load(drawn, split="folders")


def test_hidden_files_and_those_of_a_mac_are_passed_over(tmp_path, capsys):
    write(tmp_path / "deep" / "er", range(20))
    for name in ("._0.png", ".hidden.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"junk")
    for name in ("__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN"):
        write(tmp_path / name, [50])
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "phone.heic").write_bytes(b"b")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert sum(map(len, contents(tmp_path))) == 20
    noted = capsys.readouterr().err
    assert "1 files that are not images passed over (1 .txt)" in noted
    assert "1 images of formats that are not read passed over (1 .heic)" in noted


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "bmp", "tiff", "JPEG", "gif"])
def test_every_usual_kind_of_file_is_read(form, tmp_path):
    place = write(tmp_path, range(20), "{}." + form)
    train = load(place)
    assert all(name.endswith(form) for name in train.ids)
    with Image.open(place / train.ids[0]) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(train.images[0], expected)


def test_sub_folders_are_classes(tmp_path):
    for name, numbers in {"cats": range(20), "apes": range(20, 50)}.items():
        write(tmp_path / name, numbers, "x/{}.png")
    train = load(tmp_path, classes="folder")
    np.testing.assert_array_equal(
        class_labels(train, "folder", 2), [name.startswith("cats") for name in train.ids]
    )
    shutil.copy(tmp_path / "cats" / "x" / "3.png", tmp_path / "apes" / "3.png")
    with pytest.raises(DataError, match=r"apes/3.png and cats/x/3.png are one image in two classes"):
        load(tmp_path, classes="folder")
    load(tmp_path)  # without classes it is one image


def test_names_of_classes_are_the_same_from_any_disk(tmp_path):
    """A Mac's disk gives accents as marks of their own; `bullet_train` alone is no split."""
    for number, name in enumerate(("\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}")):
        write(tmp_path / f"{name}cru", range(10 * number, 10 * number + 10))
    write(tmp_path / "bullet_train", range(20, 30))
    assert load(tmp_path, classes="folder").names["folder"] == ("bullet_train", "\xe9cru")


def test_a_link_to_a_class_does_not_take_its_place(tmp_path):
    place, outside = tmp_path / "images", write(tmp_path / "outside", range(40, 50))
    for name, first in {"cats": 0, "dogs": 20}.items():
        write(place / name, range(first, first + 10))
    (place / "cats" / "a").symlink_to(place / "dogs", target_is_directory=True)
    (place / "a_latest").symlink_to(place / "dogs", target_is_directory=True)
    (place / "owls").symlink_to(outside, target_is_directory=True)
    train = load(place, classes="folder")
    assert train.names["folder"] == ("cats", "dogs", "owls")
    assert {str(name).split("/")[0] for name in train.ids} == {"cats", "dogs", "owls"}
    assert sum(map(len, (load(place, split) for split in data.SPLITS))) == 30


def test_classes_below_train_and_test(tmp_path):
    for split, first in {"train": 0, "test": 100}.items():
        for code, name in enumerate(("a", "b")):
            write(tmp_path / split / name, range(first + 10 * code, first + 10 * code + 5))
    test = load(tmp_path, "test", classes="folder")
    np.testing.assert_array_equal(test.labels["folder"], [name.split("/")[1] == "b" for name in test.ids])


def test_images_beside_folders_have_no_class(tmp_path):
    write(tmp_path, range(10))
    write(tmp_path / "a", range(10, 20))
    assert load(tmp_path).labels == {}


@pytest.mark.parametrize(
    ("tops", "why"),
    [
        (("train", "dev"), "sub-folders train, but images in dev too"),
        (("test", "val"), "sub-folders test, val, but no train"),
        (("testA", "train_images"), "testa, train_images, which may be a split"),
        (("cats_test", "cats_train"), "cats_test, cats_train, which may be a split"),
        (("cats", "holdout"), "holdout, which may be a split"),
    ],
)
def test_folders_that_may_be_splits_are_asked_about(tops, why, tmp_path):
    for place, top in enumerate(tops):
        write(tmp_path / top / "a", range(5 * place, 5 * place + 5))
    with pytest.raises(DataError, match=why):
        load(tmp_path)
    assert load(tmp_path, split="digest").names["folder"] == (
        ("a",) if "val" in tops else tuple(sorted(tops))
    )


@pytest.mark.parametrize("top", ["train", "deep/train"])
def test_classes_below_train_alone(top, tmp_path):
    for place, name in enumerate(("cats", "dogs")):
        write(tmp_path / top / name, range(10 * place, 10 * place + 10))
    train = load(tmp_path, classes="folder")
    assert train.names["folder"] == ("cats", "dogs")
    line = r"2 classes \(cats, dogs\), but unet.classes=3 leaves it 3; set unet.classes=2"
    with pytest.raises(ConfigError, match=line):
        class_labels(train, "folder", 3)


@pytest.mark.parametrize("below", ["", "train/"])
@pytest.mark.parametrize(("first", "second"), [("images", "masks"), ("img", "seg_label"), ("RGB", "Depth")])
def test_maps_beside_images_are_asked_about(below, first, second, tmp_path):
    """They were examined and trained on as images."""
    for name in (first, second):
        write(tmp_path / f"{below}{name}", range(4))
    with pytest.raises(
        DataError, match=rf"sub-folders {below}{first} and {below}{second}, of which the second"
    ):
        load(tmp_path)
    (tmp_path / below / first).rename(tmp_path / below / f"{first}_labels")  # one name that says both
    assert len(folder.list_images(tmp_path).names) == 8
    (tmp_path / below / second).rename(tmp_path / below / "more")
    assert len(folder.list_images(tmp_path).names) == 8


def test_images_without_labels_have_no_classes(drawn):
    with pytest.raises(ConfigError, match=r"data.classes=labels: images of folder have no labels here"):
        class_labels(load(drawn), "labels", 3)


def test_images_that_are_left_out_by_n_train_are_counted(drawn, capsys):
    config = DataConfig(name="folder", path=str(drawn), n_train=7, n_test=5)
    assert len(data.load(config, SIZE, "train", 0, None)) == 7
    assert "7 of 49 training images are used (data.n_train=7; 0: all)" in capsys.readouterr().err


def test_an_empty_split_of_a_folder_says_what_helps(tmp_path):
    write(tmp_path, range(2))
    with pytest.raises(DataError, match=r"no images in the 'test' split .*; equal images count once"):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    "spoil, why",
    [
        (lambda place: (place / "7.png").write_bytes(b"\x89PNG cut"), r"image 7\.png can't be decoded"),
        (
            lambda place: (place / "7.png").rename(place / os.fsdecode(b"\xff.png")),
            r"the name of '\\udcff.png' is not UTF-8; rename it",
        ),
        (lambda place: (place / "7.png").write_bytes(b""), r"image 7\.png can't be decoded"),
        (
            lambda place: Image.fromarray(draw(1)[:4]).save(place / "small.png"),
            r"image small\.png is 8x4 .*too small for 8x8",
        ),
        (
            lambda place: Image.fromarray(draw(1)[..., 0].astype(np.uint16) * 16).save(place / "deep.png"),
            r"image deep\.png is of 16 bits, but no pixel is above",
        ),
    ],
)
def test_a_file_that_can_not_be_used_is_named(spoil, why, tmp_path):
    write(tmp_path, range(12))
    spoil(tmp_path)
    with pytest.raises(DataError, match=why):
        load(tmp_path)


def test_folders_that_may_not_be_entered_are_named_unless_they_are_of_the_system(tmp_path, monkeypatch):
    """The `lost+found` of a disk was looked at for CelebA; images in other folders were left out unsaid."""
    for name in ("cats", "dogs", "lost+found"):
        write(tmp_path / name, range(3))
    (tmp_path / "lost+found" / PARTITION).write_text("")
    may = lambda path: Path(path).name not in ("dogs", "lost+found")
    monkeypatch.setattr(os, "access", lambda path, _: may(path))
    assert celeba_folder(tmp_path) is None

    def entries(path, read=os.scandir):
        if not may(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", entries)
    with pytest.raises(DataError, match=r"dogs can't be read \(Permission denied\); mend or remove it"):
        folder.list_images(tmp_path)


def test_places_without_images_are_named(tmp_path):
    (tmp_path / "hub").mkdir()
    for name in ("a.txt", "a.zip", "hub/data.arrow"):
        (tmp_path / name).write_text("a")
    for path, why in {
        tmp_path / "nowhere": "no folder or file .*nowhere",
        tmp_path: r"no images in .* \(3 other files \(.*1 \.txt.*\)\)",
        tmp_path / "a.txt": r"a\.txt is not a folder",
        tmp_path / "a.zip": r"a\.zip is not a folder; .*; unpack it",
        tmp_path / "hub": r"no images in .*tables of the Hugging Face hub are not read",
        "": "data.path is not set",
    }.items():
        with pytest.raises(DataError, match=why):
            load(path)


def test_an_array_file_is_data_too(tmp_path):
    images = np.stack([draw(number) for number in range(40)])
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images.transpose(0, 3, 1, 2))
    train, validation, test = contents(tmp_path / "a.npy")
    assert train | validation | test == {image.tobytes() for image in images}
    assert contents(tmp_path / "a.npz") == [train, validation, test]
    np.save(tmp_path / "float.npy", data.to_float(images))
    np.testing.assert_array_equal(load(tmp_path / "float.npy").images, load(tmp_path / "a.npy").images)


def test_open_collection_gives_each_image_once(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "faces")
    shutil.copy(drawn / "0.png", tmp_path / "faces" / "again.png")
    collection = open_collection(tmp_path / "faces")
    assert len(collection.rows) == 60 and "1 equal images left out" in collection.notes
    preprocessing = DataConfig().preprocessing
    pixels = {data.to_bytes(collection.pixels(row, SIZE, preprocessing)).tobytes() for row in collection.rows}
    assert pixels == {draw(number).tobytes() for number in range(60)}
    assert collection.digest != open_collection(drawn).digest


def test_places_without_images_and_pipes_are_refused_in_one_line(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"none\.npy holds no images"):
        open_collection(tmp_path / "none.npy")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is no ordinary file"):
        folder.list_images(tmp_path)
