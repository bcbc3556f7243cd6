"""The official CelebA layout: images, splits, labels and people.

Most tests draw a small pack of their own; those of the real images skip where these are absent.
"""

import dataclasses
import io
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
    unpack_beside,
    write_archive,
    write_pack,
)

from mechdiff import data
from mechdiff.core.config import DataConfig, Preprocessing, SweepConfig
from mechdiff.core.errors import DataError
from mechdiff.data import celeba
from mechdiff.data.images import thumbnail
from mechdiff.study import held_out

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
        if mark == ", ":  # names in their folder; splits and marks in words
            words = {"0": "train", "1": "val", "2": "test"} if name == celeba.PARTITION else {}
            words = {"1": "true", "-1": "false"} if first else words
            rows = [[f"img_align_celeba/{image}", *(words.get(v, v) for v in row)] for image, *row in rows]
            rows[0][0] = "image_id"
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


def test_scrambled_images_are_called_so(tmp_path):
    pack, few = write_pack(tmp_path / "pack"), SweepConfig(images=2, reference_images=1)
    config = DataConfig(name="celeba", path=str(pack), preprocessing=Preprocessing(phases="random"))
    unknown = "; who is on them is not known, so intervals take them for independent"
    images = held_out.held_out_images(config, 16, few, tmp_path)
    assert images.label == f"held-out CelebA images, phases scrambled{unknown}"
