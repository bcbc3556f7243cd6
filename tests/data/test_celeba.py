"""The official CelebA layout, its cache, and one line for everything that can be wrong with either.

Most tests draw a small pack of their own; those of the real images skip where these are absent.
"""

import dataclasses
import fcntl
import io
import json
import os
import pickle
import resource
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.celeba_packs import (
    MARKS,
    SHARED,
    by_id,
    jpeg,
    load,
    mark,
    read_archive,
    write_archive,
    write_pack,
)

from mechdiff import data
from mechdiff.core.config import DataConfig, Preprocessing, SweepConfig
from mechdiff.core.errors import DataError
from mechdiff.data import cache, celeba, celeba_records
from mechdiff.data.cache import load_split, stored
from mechdiff.data.images import thumbnail
from mechdiff.study import held_out


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("celeba"))


# ---- images


@pytest.mark.parametrize("width, height", [(178, 218), (89, 109)])
def test_the_crop_is_the_centered_square(width, height):
    image = np.zeros((height, width, 3), np.uint8)
    top = (height - width) // 2
    image[:top, :, 0] = image[top + width :, :, 0] = 255
    image[top : top + width, :, 1] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    np.testing.assert_array_equal(
        thumbnail(buffer.getvalue(), 32, "x"), np.full((32, 32, 3), [0, 255, 0], np.uint8)
    )


def test_resizing_is_antialiased():
    board = np.uint8(255 * (np.indices((128, 128)).sum(0) % 2))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([board] * 3, -1)).save(buffer, "PNG")
    inner = thumbnail(buffer.getvalue(), 8, "x")[1:-1, 1:-1].astype(int)
    assert abs(inner - 127.5).max() <= 1.5  # picking single pixels would give 0 or 255


def test_a_image_is_never_enlarged():
    assert thumbnail(jpeg(1, (89, 109)), 89, "x").shape == (89, 89, 3)
    with pytest.raises(DataError, match=r"000001.jpg is 89x109 .*, too small for 90x90; .* at most 89"):
        thumbnail(jpeg(1, (89, 109)), 90, "000001.jpg")


def test_grey_images_become_rgb():
    buffer = io.BytesIO()
    Image.new("L", (20, 24), 99).save(buffer, "PNG")
    np.testing.assert_array_equal(thumbnail(buffer.getvalue(), 16, "x"), np.full((16, 16, 3), 99, np.uint8))


# ---- layout


@pytest.mark.parametrize(
    "split, names", [("train", range(1, 9)), ("validation", range(9, 12)), ("test", range(12, 16))]
)
def test_splits_labels_and_pixels_follow_the_lists(pack, split, names):
    dataset = load(pack, split)
    assert sorted(dataset.ids) == [f"{number:06}.jpg" for number in names]
    assert dataset.images.shape == (len(names), 16, 16, 3) and dataset.images.dtype == np.uint8
    assert set(dataset.labels) == set(MARKS)
    for row, name in enumerate(dataset.ids):
        number = int(name[:6])
        assert [bool(dataset.labels[label][row]) for label in MARKS] == [mark(number, c) for c in range(3)]
        np.testing.assert_array_equal(dataset.images[row], thumbnail(jpeg(number), 16, name))


def test_archive_and_unpacked_folder_and_official_subfolders_agree(pack, tmp_path):
    unpacked = write_pack(tmp_path / "unpacked", unpacked=True, end="\n")
    official = write_pack(tmp_path / "official")
    for place, name in [("Img", celeba.ARCHIVE), ("Anno", celeba.ATTRIBUTES), ("Eval", celeba.PARTITION)]:
        (official / place).mkdir()
        (official / name).rename(official / place / name)
    expected = load(pack)
    for folder in (unpacked, official):
        assert by_id(load(folder)) == by_id(expected)
    assert load(official).digest == expected.digest


def test_an_archive_is_read_beside_images_unpacked_from_it(pack, tmp_path):
    folder = write_pack(tmp_path)
    unpack_beside(1)(folder)
    assert load(folder).digest == load(pack).digest


def test_packs_are_joined_by_comma_and_from_subfolders(pack, tmp_path):
    nested = write_pack(tmp_path / "all", splits=(0, 1))
    write_pack(nested / "half", splits=(0, 0, 2), first=100, size=(89, 109))
    (nested / "notes").mkdir()
    assert celeba.find_packs(str(nested)) == [nested, nested / "half"]
    assert sorted(load(nested).ids) == ["000001.jpg", "000100.jpg", "000101.jpg"]
    assert load(nested, "test").ids.tolist() == ["000102.jpg"]
    other = write_pack(tmp_path / "other", splits=(0,), first=200)
    joined = f"{other}, {nested},{other}"
    assert sorted(load(joined).ids) == ["000001.jpg", "000100.jpg", "000101.jpg", "000200.jpg"]


def test_a_parent_of_packs_needs_no_pack_of_its_own(tmp_path):
    write_pack(tmp_path / "a", splits=(0,))
    write_pack(tmp_path / "b", splits=(0,), first=7)
    assert sorted(load(tmp_path).ids) == ["000001.jpg", "000007.jpg"]


def test_a_image_in_two_packs_is_taken_once_from_the_first(tmp_path):
    full = write_pack(tmp_path / "full", splits=(0, 0))
    half = write_pack(tmp_path / "half", splits=(0, 0, 0), size=(89, 109))
    dataset = load(f"{full},{half}")
    assert sorted(dataset.ids) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert by_id(dataset)["000001.jpg"] == thumbnail(jpeg(1), 16, "").tobytes()
    assert by_id(dataset)["000003.jpg"] == thumbnail(jpeg(3, (89, 109)), 16, "").tobytes()


def test_where_test_images_are_too_few_to_examine_a_model_validation_helps_out(pack, tmp_path):
    test, validation = (load(pack, split) for split in ("test", "validation"))
    wanted = len(test) + 1
    config = DataConfig(name="celeba", path=str(pack))
    few = SweepConfig(images=len(test), reference_images=1, image_block=1)
    result = held_out.held_out_images(config, 16, few, tmp_path)
    assert len(result.scored) + len(result.reference) == wanted
    np.testing.assert_array_equal(data.to_bytes(result.scored), test.images)
    assert result.facts["ids"][:-1] == list(test.ids) and result.facts["ids"][-1] in validation.ids
    assert data.to_bytes(result.reference)[0].tobytes() in {item.tobytes() for item in validation.images}
    many = SweepConfig(images=len(test) + len(validation), reference_images=1, image_block=1)
    with pytest.raises(DataError, match="held-out images, but sweep"):
        held_out.held_out_images(config, 16, many, tmp_path)
    zero = held_out.held_out_images(config, 16, dataclasses.replace(many, ablations=("zero",)), tmp_path)
    assert (len(zero.scored), len(zero.reference)) == (many.images, 0)  # zero ablation needs none
    assert zero.facts["count"] == len(zero.facts["ids"]) == many.images


def as_table(folder: Path, mark: str, ending: str = ".csv") -> None:
    """The lists as the mirrors pack them, and as tables saved anew: a line of column names, 0 for -1."""
    for name, first in {celeba.ATTRIBUTES: 1, celeba.PARTITION: 0, celeba.IDENTITY: 0}.items():
        lines = (folder / name).read_text().splitlines()[first:]
        head = [["image_id", *MARKS], *(line.split() for line in lines[1:])]
        rows = head if first else [["image_id", "value"], *(line.split() for line in lines)]
        if mark == ";":  # with the numbers of rows, of which the column has no name
            rows = [[str(number or ""), *row] for number, row in enumerate(rows)]
            rows = [[f'"{field}"'.replace('"-1"', "0.0") for field in row] for row in rows]
        if mark == "\t" and first:  # as spreadsheets write what is true
            rows = [[{"1": "TRUE", "-1": "FALSE"}.get(field, field) for field in row] for row in rows]
        (folder / name).unlink()
        (folder / name.lower().replace(".txt", ending)).write_text("\n".join(map(mark.join, rows)))


@pytest.mark.parametrize(
    ("place", "mark"),
    [
        *(("archive", ","), ("flat", ";"), ("nested", "\t"), ("nested", ""), ("mac", ","), ("mac", "")),
        *(
            ("windows", ","),
            ("windows", ""),
            ("unicode", "\t"),
            ("unicode", ""),
            ("png", ", "),
            ("flat", " "),
        ),
    ],
)
def test_packs_of_the_mirrors_are_read_alike(pack, tmp_path, mark, place):
    """Lists as tables, images one folder deeper, archives of a Mac, lists of Windows, PNG; and mixed."""
    folder = write_pack(tmp_path / "mirror", unpacked=place in ("flat", "nested", "png"))
    people = "".join(f"{number:06}.jpg {number // 3}\n" for number in range(1, 16))
    (folder / celeba.IDENTITY).write_text(people)
    if place == "nested":
        (folder / celeba.UNPACKED).rename(folder / "inner")
        (folder / celeba.UNPACKED).mkdir()
        (folder / "inner").rename(folder / celeba.UNPACKED / celeba.UNPACKED)
        (folder / celeba.UNPACKED / ".DS_Store").write_bytes(b"junk")
    if place == "mac":
        encoded = read_archive(folder)
        junk = {"__MACOSX/" + name.replace("/", "/._"): b"junk" for name in encoded}
        nested = {f"img_align_celeba/{name}": content for name, content in encoded.items()}
        write_archive(folder, junk | nested | {"../000099.jpg": b"outside"})
    if place == "png":
        for path in (folder / celeba.UNPACKED).iterdir():
            Image.open(path).save(path.with_suffix(".PNG"))
            path.unlink()
    if mark:
        as_table(folder, mark, ".txt" if mark == " " else ".csv")
    if coding := {"windows": "utf-8-sig", "unicode": "utf-16"}.get(place):  # as Excel and Notepad save them
        for path in (*folder.glob("*.txt"), *folder.glob("*.csv")):
            path.write_text(path.read_text(), encoding=coding, newline="\r\n")
    for split in data.SPLITS:
        expected, read = load(pack, split), load(folder, split)
        assert by_id(read) == by_id(expected)
        assert [int(name[:6]) // 3 for name in read.ids] == read.people.tolist()
        for name in MARKS:
            np.testing.assert_array_equal(read.labels[name], expected.labels[name])


def test_an_archive_with_two_images_of_one_name_is_refused(tmp_path):
    folder = write_pack(tmp_path)
    encoded = read_archive(folder)
    write_archive(folder, encoded | {"other/000001.jpg": jpeg(2)})
    with pytest.raises(DataError, match=r"two images .*000001\.jpg and other/000001\.jpg"):
        load(folder)


def test_a_limit_takes_a_prefix_of_one_fixed_shuffle(pack):
    every, some = load(pack), load(pack, limit=5)
    assert every.ids.tolist() != sorted(every.ids.tolist())
    np.testing.assert_array_equal(some.ids, every.ids[:5])
    np.testing.assert_array_equal(some.images, every.images[:5])
    np.testing.assert_array_equal(some.labels["Male"], every.labels["Male"][:5])
    assert len(load(pack, limit=100)) == 8 and load(pack, limit=100).digest == every.digest


def test_digests_tell_contents_apart(pack, tmp_path):
    changed = write_pack(tmp_path)
    images = read_archive(changed)
    name = next(iter(images))
    write_archive(changed, images | {name: jpeg(99)})
    datasets = [load(pack), load(pack, limit=5), load(pack, "test"), load(pack, size=8), load(changed)]
    assert len({dataset.digest for dataset in datasets}) == 5


def test_members_that_leave_the_archive_are_ignored(tmp_path):
    folder = write_pack(tmp_path / "pack", splits=(0, 0))
    evil = {
        "../evil.jpg": b"x",
        "/abs/evil.jpg": b"x",
        "..\\evil.jpg": b"x",
        "img_align_celeba/notes.txt": b"x",
    }
    evil |= {"a/../000001.jpg": b"not this one"}
    write_archive(folder, read_archive(folder) | evil)
    before = {path for path in tmp_path.rglob("*")}
    assert by_id(load(folder))["000001.jpg"] == thumbnail(jpeg(1), 16, "").tobytes()
    assert {path for path in tmp_path.rglob("*")} == before


# ---- one line for what is wrong


def edit(name: str, change):
    def spoil(folder: Path):
        path = folder / name
        path.write_text(change(path.read_text()))

    return spoil


def drop(name: str):
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path):
    path = folder / celeba.ARCHIVE
    path.write_bytes(path.read_bytes()[:-500])


def replace_image(encoded: bytes):
    return lambda folder: write_archive(
        folder, read_archive(folder) | {f"{celeba.UNPACKED}/000003.jpg": encoded}
    )


def flip_a_byte(folder: Path):
    path = folder / celeba.ARCHIVE
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)


def lose_a_image(folder: Path):
    images = read_archive(folder)
    del images[f"{celeba.UNPACKED}/000002.jpg"]
    write_archive(folder, images)


def clear(folder: Path):
    for path in folder.iterdir():
        path.unlink()


def images_in_two_places(folder: Path):
    drop(celeba.ARCHIVE)(folder)
    for place in (folder / celeba.UNPACKED, folder / celeba.UNPACKED / celeba.UNPACKED):
        place.mkdir()
        (place / "000001.jpg").write_bytes(jpeg(1))


def unpack_beside(number: int):
    """Image 1 lies unpacked beside the archive: itself, or another."""

    def unpack(folder: Path):
        (folder / celeba.UNPACKED).mkdir()
        (folder / celeba.UNPACKED / "000001.jpg").write_bytes(jpeg(number))

    return unpack


def column_before(folder: Path):
    (folder / celeba.PARTITION).rename(folder / "list_eval_partition.csv")
    (folder / "list_eval_partition.csv").write_text("partition,image_id\n2,000001.jpg\n")


def images_twice(folder: Path):
    drop(celeba.ARCHIVE)(folder)
    (folder / celeba.UNPACKED).mkdir()
    for name in ("000001.jpg", "000001.png"):
        (folder / celeba.UNPACKED / name).write_bytes(jpeg(1))


def tables_of_the_hub(folder: Path):
    clear(folder)
    (folder / "train-00000-of-00019.parquet").write_bytes(b"PAR1")


def tell_otherwise(folder: Path):
    (folder / "list_eval_partition.csv").write_text("image_id,partition\n000001.jpg,2\n")


WRONG = {
    "images in two places": (images_in_two_places, "img_align_celeba both hold images; keep one of them"),
    "unpacked images that differ": (
        unpack_beside(2),
        "img_align_celeba.zip and .*img_align_celeba hold different images; keep the one that is right",
    ),
    "a column before the image": (column_before, r"before the image \('partition'\); put the image first"),
    "images in two encodings": (images_twice, "holds 000001.jpg and 000001.png; keep the images of one"),
    "tables of the hub": (tables_of_the_hub, "no CelebA in .*tables of the Hugging Face hub are not read"),
    "other images": (
        edit(celeba.PARTITION, lambda text: text.replace("0000", "1000")),
        "holds none of the 15 images of list_eval_partition.txt .first: 100001.jpg., but 000001.jpg",
    ),
    "lists that differ": (tell_otherwise, "list_eval_partition.csv say different things; keep the one"),
    "attributes repeat an image": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace("000006.jpg", "000005.jpg")),
        "list_attr_celeba.txt line 8: '000005.jpg' is named twice",
    ),
    "attributes repeat a name": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace(MARKS[1], MARKS[0])),
        "list_attr_celeba.txt names the attribute .* twice",
    ),
    "identities contradict": (
        lambda folder: (folder / celeba.IDENTITY).write_text("000001.jpg 1\n000001.jpg 2\n"),
        "identity_CelebA.txt line 2: '000001.jpg' is two people",
    ),
    "identities that differ": (
        lambda folder: [
            (folder / name).write_text(f"000001.jpg {person}\n")
            for person, name in enumerate((celeba.IDENTITY, "identity_celeba.csv"))
        ],
        "identity_CelebA.txt and .*identity_celeba.csv say different things; keep the one",
    ),
    "identities in other digits": (
        lambda folder: (folder / celeba.IDENTITY).write_text("000001.jpg \N{SUPERSCRIPT TWO}\n"),
        "identity_CelebA.txt line 1: '000001.jpg \N{SUPERSCRIPT TWO}' is not 'image number'",
    ),
    "identities of many digits": (
        lambda folder: (folder / celeba.IDENTITY).write_text(f"000001.jpg {10**20}\n"),
        "identity_CelebA.txt line 1: '000001.jpg 1000",
    ),
    "empty folder": (clear, "no CelebA in .*data.path must name folders that hold img_align_celeba.zip"),
    "no archive": (drop(celeba.ARCHIVE), "lacks img_align_celeba.zip; data.path must"),
    "no attributes": (drop(celeba.ATTRIBUTES), "lacks list_attr_celeba.txt"),
    "no partition": (drop(celeba.PARTITION), "lacks list_eval_partition.txt"),
    "truncated archive": (truncate, "img_align_celeba.zip is truncated or no zip .*download it again"),
    "no archive at all": (
        lambda folder: (folder / celeba.ARCHIVE).write_text("<html>Quota exceeded</html>"),
        "img_align_celeba.zip is truncated or no zip",
    ),
    "damaged image": (replace_image(b"\xff\xd8garbage"), "image 000003.jpg can't be decoded .*again"),
    "truncated image": (
        replace_image(jpeg(3)[:900]),
        "image 000003.jpg can't be decoded .*truncated.*again",
    ),
    "empty image": (replace_image(b""), "image 000003.jpg can't be decoded"),
    "huge image": (replace_image(b"x" * (2**24 + 1)), "000003.jpg claims 16777217 bytes"),
    "damaged archive": (flip_a_byte, r"0000\d\d.jpg can't be read \(Bad CRC-32.*download the archive again"),
    "images missing": (
        lose_a_image,
        r"lacks 1 of the 15 images of list_eval_partition.txt \(first: 000002.jpg\)",
    ),
    "images not listed": (
        edit(celeba.PARTITION, lambda text: text.replace("000005.jpg 0\n", "")),
        r"list_eval_partition.txt lacks 1 images of img_align_celeba.zip \(first: 000005.jpg\)",
    ),
    "partition of four": (
        edit(celeba.PARTITION, lambda text: text.replace("000005.jpg 0", "000005.jpg 3")),
        "list_eval_partition.txt line 5: '000005.jpg 3' is not",
    ),
    "partition of html": (edit(celeba.PARTITION, lambda text: "<html>"), "line 1: '<html>' is not"),
    "partition empty": (edit(celeba.PARTITION, lambda text: ""), "list_eval_partition.txt names no images"),
    "partition repeats": (
        edit(celeba.PARTITION, lambda text: text + "000005.jpg 0\n"),
        "line 16: '000005.jpg' is named twice",
    ),
    "partition leaves the folder": (
        edit(celeba.PARTITION, lambda text: text.replace("000005.jpg", "../5.jpg")),
        r"line 5: '\.\./5\.jpg' .* no plain file name",
    ),
    "attributes cut": (
        edit(celeba.ATTRIBUTES, lambda text: "\n".join(text.splitlines()[:9])),
        "list_attr_celeba.txt promises 15 images but lists 7",
    ),
    "attributes lack an image": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace("000005.jpg", "900005.jpg")),
        r"list_attr_celeba.txt lacks 1 images of list_eval_partition.txt \(first: 000005.jpg\)",
    ),
    "attributes lack a column": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace("000005.jpg  1", "000005.jpg")),
        "list_attr_celeba.txt line 7 is not an image and 3 times 1 or -1",
    ),
    "attributes of other values": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace("000005.jpg  1", "000005.jpg  2")),
        "list_attr_celeba.txt line 7 is not",
    ),
    "attributes of two kinds": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace("000005.jpg  1", "000005.jpg  0")),
        "list_attr_celeba.txt marks attributes by both -1 and 0",
    ),
    "attributes empty": (edit(celeba.ATTRIBUTES, lambda text: ""), "does not start with a count"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_that_says_what_to_do(case, tmp_path):
    folder = write_pack(tmp_path / "pack")
    spoil, message = WRONG[case]
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        load(folder, folder=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "cache").glob("**/*"))


def test_paths_that_are_no_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder '/nowhere/celeba'; data.path must name"):
        load(f"{write_pack(tmp_path)},/nowhere/celeba")
    with pytest.raises(DataError, match=r"data.path='' names no folder"):
        load("")


def test_an_empty_split_lists_what_there_is(tmp_path):
    folder = write_pack(tmp_path, splits=(0, 0, 1))
    with pytest.raises(
        DataError, match=r"no images in the 'test' split .*train 2, validation 1, test 0.*join a folder"
    ):
        data.load(DataConfig(name="celeba", path=str(folder)), 8, "test", 0, None)


def test_packs_of_other_attributes_do_not_mix(tmp_path):
    single = write_pack(tmp_path / "one", splits=(0,))
    two = write_pack(tmp_path / "two", splits=(0,), first=5, marks=("Male",))
    with pytest.raises(DataError, match="list different attributes"):
        load(f"{single},{two}")


def test_a_image_that_vanished_is_named(tmp_path):
    folder = write_pack(tmp_path, unpacked=True)
    source = celeba.open_source(str(folder))
    (folder / celeba.UNPACKED / "000004.jpg").unlink()
    with pytest.raises(DataError, match=r"000004.jpg can't be read \(No such file"):
        load_split(source, size=8, split="train", limit=0, folder=None)


# ---- cache


def test_lists_are_read_once_and_images_decoded_once(pack, tmp_path, monkeypatch):
    first = load(pack, folder=tmp_path)
    monkeypatch.setattr(celeba_records, "read_partition", None)  # a call would raise TypeError
    load(pack, "test", folder=tmp_path)
    monkeypatch.setattr(cache, "thumbnail", None)  # a call would raise TypeError
    assert isinstance(load(pack, "test", folder=tmp_path).images, np.memmap)
    again = load(pack, folder=tmp_path)
    np.testing.assert_array_equal(again.images, first.images)
    with pytest.raises(ValueError, match="read-only"):
        again.images[0] = 0
    for other in ({"size": 8}, {"split": "validation"}):  # of other splits nothing is decoded
        with pytest.raises(TypeError):
            load(pack, folder=tmp_path, **other)
    os.utime(pack / celeba.PARTITION, (0, 0))  # another file, for all that is known
    with pytest.raises(TypeError):
        celeba.open_source(str(pack))


def test_the_metadata_says_how_it_was_made(pack, tmp_path):
    load(pack, folder=tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]
    metadata = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert metadata["key"]["filter"] == "Pillow bicubic, antialiased"
    assert metadata["key"]["crop"] == "centered square of the shorter side"
    assert (
        metadata["key"]["split"] == "train"
        and metadata["key"]["size"] == 16
        and metadata["shape"] == [8, 16, 16, 3]
    )
    assert metadata["images"] == {"train": 8, "validation": 3, "test": 4}
    assert set(metadata["source"]["packs"][0]) == {celeba.ARCHIVE, celeba.ATTRIBUTES, celeba.PARTITION}


def test_a_touched_file_of_an_unpacked_folder_is_decoded_again(tmp_path):
    folder = write_pack(tmp_path / "pack", unpacked=True)
    before = load(folder, folder=tmp_path / "cache")
    path = folder / celeba.UNPACKED / "000004.jpg"
    size = path.stat().st_size
    path.write_bytes(jpeg(1).ljust(size, b"\0"))  # another image of as many bytes
    assert path.stat().st_size == size
    os.utime(path, (1, 1))
    after = load(folder, folder=tmp_path / "cache")
    assert by_id(after)["000004.jpg"] == by_id(after)["000001.jpg"] != by_id(before)["000004.jpg"]
    assert by_id(after)["000002.jpg"] == by_id(before)["000002.jpg"]


def cut_half(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save(path: Path, array: np.ndarray):
    with path.open("wb") as file:
        np.save(file, array)


def other_shape(path: Path):
    save(path, np.zeros((3, 8, 8, 3), np.uint8))


def objects(path: Path):
    path.write_bytes(pickle.dumps([1, 2]))


def other_type(path: Path):
    save(path, np.zeros((15, 16, 16, 3), np.float32))


def empty(path: Path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_half, other_shape, other_type, objects, empty, Path.unlink])
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_cache_is_made_anew(pack, tmp_path, damage, suffix):
    expected = by_id(load(pack, folder=tmp_path))
    damage(next(tmp_path.glob(f"*{suffix}")))
    assert by_id(load(pack, folder=tmp_path)) == expected
    assert len(list(tmp_path.iterdir())) == 2


def rows(count: int = 4, fail: Exception | None = None):
    def blocks():
        for row in range(count):
            if fail and row == count // 2:
                raise fail
            yield np.full((1, 1000), row, np.uint8)

    return blocks


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), DataError("bad image"), MemoryError()])
def test_an_interrupted_cache_leaves_nothing(tmp_path, failure):
    with pytest.raises(type(failure)):
        stored(tmp_path, "x", {}, (4, 1000), rows(fail=failure))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (2000, limits[1])
    )  # writes past it fail half-way, as on a full disk
    try:
        with pytest.raises(
            DataError, match=r"no room for the 0.4 MiB of .* choose another --workdir, or data.cache"
        ):
            stored(tmp_path, "x", {}, (400, 1000), rows(400))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"no room for .*No space left on device"):
        stored(tmp_path, "x", {}, (4, 1000), rows(fail=OSError(28, "No space left on device")))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        DataError,
        match=r"cache folder .*file/cache can't be written \(Not a directory\); choose another --workdir",
    ):
        stored(tmp_path / "file" / "cache", "x", {}, (4, 1000), rows())


def test_partial_files_of_killed_runs_are_cleared(tmp_path):
    done = stored(tmp_path, "x", {"seed": 1}, (4, 1000), rows())
    name, host = Path(done.filename).name, socket.gethostname()
    old, elsewhere, killed, held, young = (
        tmp_path / f".{name}.{which}.partial" for which in ("old", "host-1", *(f"{host}-{i}" for i in "234"))
    )
    for path, age in ((old, 2 * cache.STALE_SECONDS), (elsewhere, 60), (killed, 60), (held, 60), (young, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / name).unlink()
    with held.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        np.testing.assert_array_equal(stored(tmp_path, "x", {"seed": 1}, (4, 1000), rows()), done)
    assert {path for path in tmp_path.iterdir() if path.suffix == ".partial"} == {elsewhere, held, young}


def test_racing_writers_all_get_the_same_array(tmp_path):
    barrier, results = threading.Barrier(4), []

    def blocks():
        barrier.wait(timeout=300)  # all four find no cache, then all four write
        yield from rows()()

    def run():
        results.append(np.array(stored(tmp_path, "x", {}, (4, 1000), blocks)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, np.repeat(np.arange(4)[:, None], 1000, axis=1))
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_nothing_is_written(pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert by_id(load(pack)) and not list(tmp_path.iterdir())


# ---- the real thing

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="shared/celeba_subset (real CelebA images) is absent"
)


@needs_shared
def test_the_real_subset_has_the_counts_of_its_readme():
    source = celeba.open_source(str(SHARED))
    assert np.bincount(source.splits).tolist() == [4080 + 9086, 660, 539]
    assert len(source.labels) == 40
    full = np.arange(5279)  # the full-size pack comes first
    shares = {
        name: round(float(source.labels[name][full].mean()), 3) for name in ("Male", "Smiling", "Eyeglasses")
    }
    assert shares == {"Male": 0.292, "Smiling": 0.447, "Eyeglasses": 0.052}
    half = source.labels["Male"][5279:]
    assert len(half) == 9086 and round(float(half.mean()), 3) == 0.423


@needs_shared
def test_real_images_have_the_known_channel_means():
    source = celeba.open_source(str(SHARED))
    sample = np.random.default_rng(0).choice(len(source.ids), 300, replace=False)
    images = np.stack([thumbnail(source.read(int(index)), 64, str(index)) for index in sample])
    floats = data.to_float(images)
    # Published with the subset for all 14,365; 300 images move a mean by about .59 / sqrt(300) / 1.5.
    np.testing.assert_allclose(floats.mean((0, 1, 2)), [0.04, -0.14, -0.25], atol=0.08)
    assert abs(floats.std() - 0.59) < 0.04


def name_people(pack: Path, people: dict[int, int]) -> None:
    lines = (f"{number:06}.jpg {person}\n" for number, person in people.items())
    (pack / celeba.IDENTITY).write_text("".join(lines))


def test_people_travel_with_their_images(tmp_path):
    pack = write_pack(tmp_path / "pack")
    name_people(pack, {number: 100 + number // 3 for number in range(1, 16)})
    source = celeba.open_source(str(pack))
    result = load_split(source, size=16, split="test", limit=0, folder=None)
    assert result.people.tolist() == [100 + int(name[:6]) // 3 for name in result.ids]
    few = SweepConfig(images=2, timesteps=2, nested=True, reference_images=1)
    images = held_out.held_out_images(DataConfig(name="celeba", path=str(pack)), 16, few, tmp_path)
    assert images.people.shape == (2, 2) and set(images.people.ravel()) <= set(result.people)
    names = images.facts["ids"]  # swept timestep by timestep, then for reference
    assert len(names) == 5 and images.people.ravel().tolist() == [
        100 + int(name[:6]) // 3 for name in names[:4]
    ]
    assert images.labels["person"][0] == ("t", "image") and images.first(1).people.shape == (2, 1)
    single = held_out.held_out_images(
        DataConfig(name="celeba", path=str(pack)), 16, SweepConfig(images=3, reference_images=1), tmp_path
    )
    assert single.labels["person"][0] == ("image",) and len(single.people) == 3


def test_scrambled_images_are_called_so(tmp_path):
    pack, few = write_pack(tmp_path / "pack"), SweepConfig(images=2, reference_images=1)
    config = DataConfig(name="celeba", path=str(pack), preprocessing=Preprocessing(phases="random"))
    unknown = "; who is on them is not known, so intervals take them for independent"
    images = held_out.held_out_images(config, 16, few, tmp_path)
    assert images.label == f"held-out CelebA images, phases scrambled{unknown}"


def test_without_a_list_or_with_a_partial_one_nobody_is_known(tmp_path, caplog):
    pack, few = write_pack(tmp_path / "pack"), SweepConfig(images=3, reference_images=1)
    config = DataConfig(name="celeba", path=str(pack))
    assert celeba.open_source(str(pack)).people is None
    assert held_out.held_out_images(config, 16, few, tmp_path).labels == {}
    name_people(pack, {12: 7})
    caplog.clear()
    assert sorted(celeba.open_source(str(pack)).people) == [-1] * 14 + [7]
    assert "does not name 14 of 15 images (first: 000001.jpg)" in caplog.text
    assert held_out.held_out_images(config, 16, few, tmp_path).people is None


def test_people_in_training_are_not_held_out(tmp_path, caplog):
    """Splits of one pack that share person 3, and of a second one that shares person 1 with the first."""
    first = write_pack(tmp_path / "a", splits=(0, 0, 0, 1, 2, 2))
    name_people(first, {1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 4})
    alone = celeba.open_source(str(first))
    assert alone.ids.tolist() == [f"{number:06}.jpg" for number in (1, 2, 3, 6)]
    assert alone.splits.tolist() == [0, 0, 0, 2] and alone.people.tolist() == [1, 2, 3, 4]
    assert "2 of 3 held-out images are of people who are in training images too" in caplog.text
    second = write_pack(tmp_path / "b", splits=(2, 2), first=101)
    name_people(second, {101: 1, 102: 9})
    joined = load(f"{first},{second}", "test")
    assert sorted(joined.ids) == ["000006.jpg", "000102.jpg"]
    images = by_id(joined)
    assert images["000102.jpg"] == thumbnail(jpeg(102), 16, "").tobytes()
    caplog.clear()
    with_others = {1: 1, 2: 2, 3: 3, 4: 5, 5: 5, 6: 4}  # as in CelebA: validation and test may share
    name_people(first, with_others)
    whole = celeba.open_source(str(first))
    assert len(whole.ids) == 6 and "left out" not in caplog.text
    assert whole.content == celeba.fingerprint([celeba.read_pack(first).content]) != alone.content


@pytest.mark.parametrize("name", ["list_identity_celeba.csv", "Anno/Identities.txt"])
def test_a_list_of_people_under_another_name_is_named(name, tmp_path, caplog):
    pack = write_pack(tmp_path / "pack")
    (pack / name).parent.mkdir(exist_ok=True)
    (pack / name).write_text("000001.jpg 5\n")
    assert celeba.open_source(str(pack)).people is None
    assert f"{name} is not read" in caplog.text and "call it identity_CelebA.txt (or .csv)" in caplog.text
    name_people(pack, {number: number for number in range(1, 16)})
    caplog.clear()
    assert celeba.open_source(str(pack)).people is not None
    assert not caplog.text


def test_a_foreign_list_of_people_is_refused(tmp_path):
    pack = write_pack(tmp_path / "pack")
    (pack / celeba.IDENTITY).write_text("000001.jpg 5\n000002.jpg five\n")
    with pytest.raises(DataError, match=r"line 2: '000002.jpg five'"):
        celeba.open_source(str(pack))
