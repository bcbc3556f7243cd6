"""One line for everything that can be wrong with a folder of CelebA."""

from pathlib import Path

import pytest
from reference.celeba_packs import (
    MARKS,
    jpeg,
    load,
    read_archive,
    unpack_beside,
    write_archive,
    write_pack,
)

from mechdiff import data
from mechdiff.core.config import DataConfig
from mechdiff.core.errors import DataError
from mechdiff.data import celeba
from mechdiff.data.cache import load_split


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
    "attributes of numbers for names": (
        edit(celeba.ATTRIBUTES, lambda text: text.replace(".jpg", "")),
        "list_attr_celeba.txt names no image files; each line begins with one, such as 000001.jpg",
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
