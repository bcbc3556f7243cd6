"""Labelled results on disk."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from mechdiff.core.errors import CheckpointError, MechdiffError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.storage import labelled


@pytest.fixture
def empty():
    values = np.full((2, 3, 4), np.nan, np.float32)
    coords = {"ablation": ["zero", "mean"], "t": [1, 5, 9], "image": range(4)}
    return xr.Dataset({"loss": (("ablation", "t", "image"), values)}, coords, {"key": "abc"})


def test_pieces_are_found_again_with_their_labels(empty, tmp_path):
    path = tmp_path / "a.zarr"
    labelled.create(path, empty, {"loss": (1, 1, 2)})
    assert not labelled.written(path, "loss", (1, 2, 0))
    where = (slice(1, 2), slice(2, 3), slice(0, 2))
    labelled.put(path, {"loss": where}, {"loss": np.array([[[3.0, 4.0]]])})
    result = labelled.read(path)
    np.testing.assert_array_equal(result.loss.sel(ablation="mean", t=9).values[:2], [3, 4])
    assert np.isnan(result.loss).sum() == 22 and result.attrs["key"] == "abc"
    assert labelled.written(path, "loss", (1, 2, 1)) and not labelled.written(path, "loss", (1, 2, 2))


def test_creating_again_keeps_what_is_there(empty, tmp_path):
    path = tmp_path / "a.zarr"
    labelled.create(path, empty, {"loss": (1, 1, 2)})
    where = {"loss": (slice(0, 1), slice(0, 1), slice(0, 4))}
    labelled.put(path, where, {"loss": np.ones((1, 1, 4))})
    labelled.create(path, empty, {"loss": (1, 1, 2)})
    assert np.isnan(labelled.read(path).loss).sum() == 20


def test_replace_swaps_whole_results_and_leaves_nothing_aside(empty, tmp_path):
    path = tmp_path / "a.zarr"
    labelled.replace(path, empty)
    labelled.replace(path, empty.fillna(2.0))
    assert (labelled.read(path).loss == 2).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(15), OSError(errno.ENOSPC, "full")])
def test_a_replacement_stopped_between_its_two_renames_leaves_the_old_result(
    empty, tmp_path, monkeypatch, stop
):
    path, rename = tmp_path / "a.zarr", Path.rename
    labelled.replace(path, empty.fillna(1.0))

    def stopped(self, target):
        if self.name.endswith(".tmp"):
            raise stop
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, MechdiffError)):
        patch.setattr(Path, "rename", stopped)
        labelled.replace(path, empty.fillna(2.0))
    assert (labelled.read(path).loss == 1).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


def test_what_a_killed_process_left_beside_is_removed_when_it_is_old(empty, tmp_path):
    names = (".a.zarr.0123abcd.tmp", ".a.zarr.0123abcd.tmp.old", ".b.zarr.89abcdef.tmp")
    left = [tmp_path / name for name in names]
    new = tmp_path / ".a.zarr.89abcdef.tmp"
    for folder in (*left, new):
        folder.mkdir()
    for folder in left:
        os.utime(folder, (0, 0))
    labelled.replace(tmp_path / "a.zarr", empty)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zarr", new.name, left[2].name}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_but_a_result_is_replaced(empty, tmp_path, kind):
    place = tmp_path / "thesis"
    file = place / "chapter.tex" if kind == "folder" else place
    file.parent.mkdir(exist_ok=True)
    file.write_text("years of work")
    with pytest.raises(MechdiffError, match="thesis is there and is no result, so it is not replaced"):
        labelled.replace(place, empty)
    assert file.read_text() == "years of work"
    file.unlink()
    labelled.replace(place, empty)  # an empty folder is nobody's
    assert labelled.read(place).sizes == empty.sizes


def test_absent_results_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="run the sweep first"):
        labelled.read(tmp_path / "none.zarr")


def test_read_takes_names_of_the_first_edition(tmp_path):
    values = np.zeros((1, 2), np.float32)
    old = xr.Dataset(
        {"loss": (("kind", "component"), values)},
        {"kind": ["zero"], "part": ("component", ["res", "head"])},
        {"subject": "a model"},
    )
    labelled.replace(tmp_path / "old.zarr", old)
    new = labelled.read(tmp_path / "old.zarr")
    assert new["loss"].dims == ("ablation", "component") and new.attrs["denoiser"] == "a model"
    assert new["component_type"].values.tolist() == ["res", "head"]


@pytest.mark.parametrize("write", ["create", "replace"])
def test_results_explain_themselves_and_open_without_a_warning(empty, tmp_path, write):
    path = tmp_path / "a.zarr"
    if write == "create":
        labelled.create(path, empty, {"loss": (1, 1, 2)})
    else:
        labelled.replace(path, empty)
    opened = xr.open_zarr(path)  # a warning would be an error here
    assert opened["loss"].attrs["units"] == "1" and "predicted noise" in opened["loss"].attrs["long_name"]
    assert all(variable.attrs["long_name"] for variable in opened.variables.values())
    assert opened.attrs["numerics_version"] == NUMERICS_VERSION and opened.attrs["key"] == "abc"
    assert not empty["loss"].attrs and empty.attrs == {"key": "abc"}  # what was passed stays as it was


def test_what_a_result_says_of_itself_stands(empty, tmp_path):
    empty["loss"].attrs = {"units": "bit"}
    labelled.replace(tmp_path / "a.zarr", empty.assign(own_thing=("t", [1.0, 2, 3])))
    result = labelled.read(tmp_path / "a.zarr")
    assert result["loss"].attrs["units"] == "bit" and result["own_thing"].attrs == {"long_name": "own thing"}


def test_results_of_the_first_edition_are_read_though_not_consolidated(empty, tmp_path):
    empty.fillna(1.0).to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    assert (labelled.read(tmp_path / "a.zarr").loss == 1).all()


def test_a_result_without_consolidated_metadata_is_gone_on_with(empty, tmp_path):
    path = tmp_path / "a.zarr"
    labelled.create(path, empty, {"loss": (1, 1, 2)})
    (path / ".zmetadata").unlink()
    shape = empty["loss"].shape
    labelled.put(path, {"loss": tuple(map(slice, shape))}, {"loss": np.ones(shape, np.float32)})
    assert labelled.written(path, "loss", (0,) * len(shape)) and (labelled.read(path)["loss"] == 1).all()


def test_a_result_is_the_files_that_zarr_itself_would_write(empty, tmp_path):
    """And checksums of chunks beside them, which no other reader looks for."""
    labelled.create(tmp_path / "ours.zarr", empty, {"loss": (1, 1, 2)})
    described = xr.open_zarr(tmp_path / "ours.zarr").load()
    for variable in described.variables.values():
        variable.encoding = {}
    described.to_zarr(
        tmp_path / "theirs.zarr", zarr_format=2, consolidated=True, encoding={"loss": {"chunks": (1, 1, 2)}}
    )

    def members(folder):
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".crc32")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    assert members(tmp_path / "ours.zarr") == members(tmp_path / "theirs.zarr")


@pytest.mark.parametrize("length", [0, 10, 20])
def test_a_chunk_that_was_cut_short_is_damage_and_no_number(empty, tmp_path, length):
    """Its decoder read on in memory behind it, and gave other numbers without an error."""
    path = tmp_path / "a.zarr"
    labelled.create(path, empty, {"loss": (1, 1, 4)})
    labelled.put(path, {"loss": (slice(0, 1), slice(0, 1), slice(0, 4))}, {"loss": np.ones((1, 1, 4))})
    chunk = path / "loss" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:length])
    for read in (labelled.read, lambda path: labelled.written(path, "loss", (0, 0, 0))):
        with pytest.raises(CheckpointError, match=rf"0.0.0 holds {length} of \d+ bytes.*delete that folder"):
            read(path)


@pytest.mark.parametrize("write", ["put", "replace"])
def test_a_flipped_bit_is_damage_and_no_number(empty, tmp_path, write):
    """Its decoder gave other numbers without an error for nine of ten of them."""
    path, whole = tmp_path / "a.zarr", tuple(map(slice, empty["loss"].shape))
    numbers = np.random.default_rng(0).normal(size=empty["loss"].shape).astype(np.float32)
    if write == "put":
        labelled.create(path, empty, {"loss": empty["loss"].shape})
        labelled.put(path, {"loss": whole}, {"loss": numbers})
    else:
        labelled.replace(path, empty.assign(loss=(empty["loss"].dims, numbers)))
    np.testing.assert_array_equal(xr.open_zarr(path)["loss"], numbers)  # as any reader of Zarr
    chunk = path / "loss" / "0.0.0"
    written = chunk.read_bytes()
    for place in (*range(16), *range(16, len(written), 13)):  # its header, and some of the rest
        chunk.write_bytes(written[:place] + bytes([written[place] ^ 16]) + written[place + 1 :])
        with pytest.raises(CheckpointError, match=r"a\.zarr is damaged \(.*delete that folder and run again"):
            labelled.read(path)
    chunk.write_bytes(written)
    checksums = path / "loss" / ".0.0.0.crc32"
    for lines in (
        checksums.read_bytes() + b"0123abcd\n",
        b"01",
        b"",
        None,
    ):  # killed before the chunk; cut short
        if lines is None:  # as earlier versions left it
            checksums.unlink()
        else:
            checksums.write_bytes(lines)
        np.testing.assert_array_equal(labelled.read(path)["loss"], numbers)


def test_a_description_that_was_changed_is_damage(empty, tmp_path):
    """One flipped bit in a dimension's name ended in a stack trace."""
    labelled.replace(tmp_path / "a.zarr", empty)
    attributes = tmp_path / "a.zarr" / "loss" / ".zattrs"
    attributes.write_text(attributes.read_text().replace('"image"', '"imaoe"'))
    with pytest.raises(CheckpointError, match=r"damaged \(loss/.zattrs and .zmetadata differ\); delete that"):
        labelled.read(tmp_path / "a.zarr")


def test_a_result_that_lacks_a_variable_is_damaged(empty, tmp_path):
    labelled.replace(tmp_path / "a.zarr", empty)
    shutil.rmtree(tmp_path / "a.zarr" / "loss")
    with pytest.raises(CheckpointError, match=r"is damaged \(it lacks loss\)"):
        labelled.read(tmp_path / "a.zarr")
