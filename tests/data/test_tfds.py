"""A TFDS copy prepared here without TensorFlow gives the pixels and attributes of the official files."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from reference.celeba_packs import SHARED, jpeg, load, read_archive, write_archive, write_pack

from mechdiff import data
from mechdiff.core.config import DataConfig
from mechdiff.core.errors import DataError
from mechdiff.data import celeba, tfds

installed = pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")

PICTURES = {"train": 250, "validation": 30, "test": 20}  # of the real subset


def official_marks() -> tuple[str, ...]:
    from tensorflow_datasets.datasets.celeb_a.celeb_a_dataset_builder import ATTR_HEADINGS

    return tuple(ATTR_HEADINGS)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("celeba"), marks=official_marks())


@pytest.fixture(scope="module")
def copy(pack, tmp_path_factory):
    return tfds.prepare(pack, tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def spoilt(copy, tmp_path):
    """A copy of the copy, to be damaged."""
    return Path(shutil.copytree(copy, tmp_path / "spoilt"))


def read(path: Path, split: str, size: int = 16, folder: Path | None = None):
    return data.load(DataConfig(name="tfds", path=str(path), n_train=0, n_test=0), size, split, 0, folder)


def same_content(first, other):
    """Pictures and attributes agree, whatever the order."""
    assert sorted(map(content_of(first), range(len(first)))) == sorted(
        map(content_of(other), range(len(other)))
    )


def content_of(dataset):
    names = sorted(dataset.labels)
    return lambda row: (dataset.images[row].tobytes(), [bool(dataset.labels[name][row]) for name in names])


@pytest.mark.parametrize("split", data.SPLITS)
def test_the_copy_holds_the_official_images_and_attributes(pack, copy, split):
    dataset = read(copy, split)
    assert set(dataset.labels) == set(official_marks())
    same_content(dataset, load(pack, split))


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/celeba_subset (real CelebA images) is absent")
def test_real_images_survive_the_detour_through_tfds(tmp_path):
    pack = cut_subset(tmp_path / "pack")
    copy = tfds.prepare(pack, tmp_path / "tfds")
    for split, count in PICTURES.items():
        dataset = read(copy, split, 32, tmp_path / "cache")
        assert len(dataset) == count
        same_content(dataset, load(pack, split, 32, folder=tmp_path / "cache"))


def cut_subset(folder: Path) -> Path:
    """The first images of each split of the real subset, as a pack."""
    folder.mkdir()
    whole = celeba.read_pack(SHARED)
    rows = [
        row
        for code, count in enumerate(PICTURES.values())
        for row in np.flatnonzero(whole.splits == code)[:count]
    ]
    with zipfile.ZipFile(folder / celeba.ARCHIVE, "w") as archive:
        for row in rows:
            archive.writestr(f"{celeba.UNPACKED}/{whole.names[row]}", whole.read(whole.names[row]))
    partition = [f"{whole.names[row]} {whole.splits[row]}" for row in rows]
    marks = [
        " ".join([whole.names[row], *("1" if flag else "-1" for flag in whole.flags[row])]) for row in rows
    ]
    (folder / celeba.PARTITION).write_text("\n".join(partition))
    (folder / celeba.ATTRIBUTES).write_text("\n".join([str(len(rows)), " ".join(whole.attributes), *marks]))
    return folder


def test_tfds_own_reader_takes_the_copy(pack, copy):
    source = installed.data_source("celeb_a", data_dir=str(copy.parents[1]), split="train", download=False)
    assert len(source) == 8
    record = source[0]
    assert record["image"].shape == (218, 178, 3) and record["image"].dtype == np.uint8
    assert set(record["landmarks"].values()) == {-1} and record["identity"]["Identity_No"] == -1


def test_identities_are_kept_where_they_are_known(pack, tmp_path):
    folder = Path(shutil.copytree(pack, tmp_path / "pack"))
    (folder / tfds.IDENTITY).write_text(
        "".join(f"{number:06}.jpg {1000 + number}\r\n" for number in range(1, 16))
    )
    copy = tfds.prepare(folder, tmp_path / "tfds")
    source = installed.data_source("celeb_a", data_dir=str(copy.parents[1]), split="test", download=False)
    assert sorted(record["identity"]["Identity_No"] for record in source) == [1012, 1013, 1014, 1015]


def test_tensorflow_is_never_imported(copy, tmp_path):
    program = f"""
import sys
from mechdiff import data
from mechdiff.core.config import DataConfig
assert "tensorflow_datasets" not in sys.modules  # nor TFDS before it is needed
assert len(data.load(DataConfig(name="tfds", path={str(copy)!r}), 8, "test", 0, None)) == 4
assert "tensorflow" not in sys.modules
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_copy_is_found_from_any_folder_above_it(copy):
    assert tfds.find_copy(str(copy)) == tfds.find_copy(str(copy.parent)) == copy
    assert tfds.find_copy(str(copy.parents[1])) == copy


def test_records_and_attributes_are_read_once(copy, tmp_path, monkeypatch):
    first, held_out = (read(copy, split, folder=tmp_path) for split in ("train", "test"))
    monkeypatch.setattr(tfds, "_fields", None)  # a call would raise TypeError
    again = read(copy, "train", folder=tmp_path)
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.labels["Male"], first.labels["Male"])
    assert again.digest == first.digest != held_out.digest


# ---- one line for what is wrong


def test_absent_copies_say_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match=r"no folder '/nowhere' .*mechdiff.data.tfds.prepare\("):
        read(Path("/nowhere"), "train")
    with pytest.raises(DataError, match=r"no prepared TFDS copy \(no dataset_info.json\) in .*prepare\("):
        read(tmp_path, "train")


def test_a_missing_package_says_what_to_install(copy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for call in (lambda: read(copy, "train"), lambda: tfds.prepare(copy, tmp_path)):
        with pytest.raises(DataError, match=r'pip install "mechdiff\[tfds\]"'):
            call()


def test_other_formats_are_refused(spoilt):
    info = json.loads((spoilt / tfds.INFO).read_text())
    (spoilt / tfds.INFO).write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"is in the tfrecord format, which needs TensorFlow; .*prepare\("):
        read(spoilt, "train")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_info_is_named(spoilt, text):
    (spoilt / tfds.INFO).write_text(text)
    with pytest.raises(DataError, match=r"dataset_info.json is damaged"):
        read(spoilt, "train")


def test_absent_records_are_named(spoilt):
    next(spoilt.glob("*test*")).unlink()
    with pytest.raises(
        DataError, match=r"lacks celeb_a-test.array_record-00000-of-00001; prepare the copy again"
    ):
        read(spoilt, "train")


@pytest.mark.parametrize("keep", [0, 1000, 65600])
def test_truncated_records_are_named(spoilt, keep):
    shard = next(spoilt.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(
        DataError, match=r"record train\[\d\] of .* can't be read .*prepare the copy again"
    ) as caught:
        read(spoilt, "train")
    assert "\n" not in str(caught.value)


def test_an_empty_split_lists_what_there_is(tmp_path):
    pack = write_pack(tmp_path / "pack", splits=(0, 0, 2), marks=official_marks())
    copy = tfds.prepare(pack, tmp_path / "tfds")
    with pytest.raises(
        DataError, match=r"no images in the 'validation' split .*train 2, validation 0, test 1"
    ):
        read(copy, "validation")
    assert len(read(copy, "test")) == 1


def test_prepare_refuses_what_is_no_celeba(pack, copy, tmp_path):
    with pytest.raises(DataError, match="other attributes than CelebA's 40"):
        tfds.prepare(write_pack(tmp_path / "few", splits=(0,)), tmp_path / "tfds")
    half = write_pack(tmp_path / "half", splits=(0,), size=(89, 109), marks=official_marks())
    with pytest.raises(DataError, match=r"image 000001.jpg is 89x109; celeb_a holds 178x218"):
        tfds.prepare(half, tmp_path / "tfds")
    bad = write_pack(tmp_path / "bad", splits=(0, 0), marks=official_marks())
    write_archive(bad, read_archive(bad) | {f"{celeba.UNPACKED}/000002.jpg": b"?"})
    with pytest.raises(DataError, match=r"^image 000002.jpg can't be decoded"):
        tfds.prepare(bad, tmp_path / "tfds")
    assert not list(tmp_path.glob("tfds/**/*.array_record*")), "a refused preparation left records behind"
    with pytest.raises(DataError, match="is prepared already; name another folder"):
        tfds.prepare(pack, copy.parents[1])


def test_prepare_names_a_folder_that_cannot_be_written(pack, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"no TFDS copy could be written to .*file/tfds") as caught:
        tfds.prepare(pack, tmp_path / "file" / "tfds")
    assert "\n" not in str(caught.value)


def test_jpegs_pass_through_unchanged(copy):
    """So the copy loses nothing: its bytes are those of the archive."""
    source = tfds.open_source(str(copy))
    assert {source.read(index) for index in range(15)} == {jpeg(number) for number in range(1, 16)}
