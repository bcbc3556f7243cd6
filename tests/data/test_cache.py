"""Decoded images on disk: made once, anew if damaged, shared by racing processes."""

import fcntl
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
from reference.celeba_packs import (
    by_id,
    jpeg,
    load,
    write_pack,
)

from mechdiff.core.errors import DataError
from mechdiff.data import cache, celeba, celeba_records
from mechdiff.data.cache import stored


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
