"""Exported models: what is loaded is bitwise what was saved, or nothing is."""

import errno
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.saved import CONFIG, PARAMS, assert_same, contents, flip

from mechdiff.core.errors import CheckpointError
from mechdiff.storage import checkpoint, checksums
from mechdiff.storage.exported import export_model, load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("nothing_left_behind"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_model(tmp_path_factory.mktemp("models") / "model", PARAMS, CONFIG, {"loss": 0.25})


def test_a_model_comes_back_bitwise_with_its_config_and_record(exported):
    params, config, record = load_model(exported, jax.eval_shape(lambda: PARAMS))
    assert_same(params, PARAMS)
    assert config == {"seed": 1, "train": {"steps": 10, "batch": 4}, "unet": {"widths": [8, 16]}}
    assert record == {"loss": 0.25}


def test_a_half_precision_model_is_smaller_and_loads_as_float32_within_half_precision(tmp_path):
    params = {"a": jax.random.normal(jax.random.key(0), (100, 100))}
    sizes = {}
    for dtype in ("float32", "float16"):
        folder = export_model(tmp_path / dtype, params, {}, {}, dtype)
        sizes[dtype] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    loaded = load_model(tmp_path / "float16")[0]["a"]
    assert loaded.dtype == jnp.float32
    np.testing.assert_allclose(loaded, params["a"], rtol=2**-11, atol=2**-25)
    assert sizes["float16"] < 0.6 * sizes["float32"] and sizes["float32"] < 40_000 * 1.1


def test_an_exported_model_does_not_tell_where_it_was_made(exported):
    assert not any(
        str(exported.parent).encode() in (exported / name).read_bytes() for name in contents(exported)
    )


def test_exporting_again_replaces_the_model_and_leaves_nothing_aside(tmp_path):
    for loss in (1.0, 2.0):
        export_model(tmp_path / "model", PARAMS, CONFIG, {"loss": loss})
    assert load_model(tmp_path / "model")[2] == {"loss": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_stopped_between_its_renames_keeps_the_earlier_model(tmp_path, monkeypatch):
    def rename(path, target, original=Path.rename):
        if target == tmp_path / "model" and path.suffix == ".tmp":
            raise KeyboardInterrupt
        return original(path, target)

    export_model(tmp_path / "model", PARAMS, CONFIG, {"loss": 1.0})
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        export_model(tmp_path / "model", PARAMS, CONFIG, {"loss": 2.0})
    assert load_model(tmp_path / "model")[2] == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_killed_exports_left_is_put_back_or_removed_by_the_next_one(exported, tmp_path, monkeypatch):
    """Also where that one fails; models of other names and what they left are no concern of it."""
    shutil.copytree(exported, tmp_path / ".model.0123abcd.tmp.old")
    for name in (".model.0123abcd.tmp", ".model.89abcdef.tmp", ".model-2.89abcdef.tmp", ".model.mine.tmp"):
        (tmp_path / name / "params").mkdir(parents=True)
    monkeypatch.setattr(checkpoint, "save_arrays", lambda *_: 1 / 0)
    with pytest.raises(CheckpointError, match="division by zero"):
        export_model(tmp_path / "model", PARAMS, CONFIG, {"loss": 2.0})
    assert load_model(tmp_path / "model")[2] == {"loss": 0.25}
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".model-2.89abcdef.tmp", ".model.mine.tmp", "model"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("No space left on device")])
def test_a_full_disk_while_exporting_keeps_the_earlier_model(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    export_model(tmp_path / "model", PARAMS, CONFIG, {"loss": 1.0})
    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(CheckpointError, match="model: the disk is full"):
        export_model(tmp_path / "model", PARAMS, CONFIG, {"loss": 2.0})
    assert load_model(tmp_path / "model")[2] == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_export_refuses_a_folder_that_is_not_a_model(tmp_path):
    (tmp_path / "thesis").write_text("")
    with pytest.raises(CheckpointError, match="exists and is not an exported model; choose another name"):
        export_model(tmp_path, PARAMS, CONFIG, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize("dtype, value", [("float32", np.nan), ("float16", 1e5)])
def test_export_refuses_numbers_that_the_dtype_cannot_hold(tmp_path, dtype, value):
    with pytest.raises(CheckpointError, match=f"a/b of the params is not finite in {dtype}"):
        export_model(tmp_path / "model", {"a": {"b": jnp.float32(value)}}, {}, {}, dtype)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_to_any_file_of_a_model_is_detected_and_the_file_named(exported, tmp_path, damage):
    folder = shutil.copytree(exported, tmp_path / "model")
    for name in set(contents(folder)) - {Path(checksums.NAME)}:
        path = folder / name
        original = path.read_bytes()
        if damage == "flip" or not original:
            flip(path)
        elif damage == "cut":
            path.write_bytes(original[:-1])
        else:
            path.unlink()
        with pytest.raises(CheckpointError, match=rf"^\S*{re.escape(str(name))} is [^\n]*; [^\n]*$"):
            load_model(folder)
        path.write_bytes(original)
    load_model(folder)


def test_every_bit_and_the_length_of_the_sums_matter(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    original = (folder / checksums.NAME).read_bytes()
    for position in range(len(original) - 1, -1, -4):
        changed = bytearray(original)
        changed[position] ^= 1 << position % 8
        for wrong in (changed, original[:position]):
            (folder / checksums.NAME).write_bytes(wrong)
            with pytest.raises(CheckpointError):
                checksums.verify(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "params/link"])
def test_sums_that_lead_out_of_the_folder_are_refused_before_reading(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "outside").write_text("")
    (folder / "params" / "link").symlink_to(tmp_path / "outside")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with (folder / checksums.NAME).open("a") as file:
        file.write(f"{empty}  {name}\n")
    with pytest.raises(CheckpointError, match=r"is damaged at|lies outside"):
        load_model(folder)


def test_strangers_in_a_model_are_refused_and_hidden_files_tolerated(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / ".DS_Store").write_text("")
    load_model(folder)
    (folder / "params" / "more").write_text("")
    with pytest.raises(CheckpointError, match="params/more is not listed in SHA256SUMS"):
        load_model(folder)


@pytest.mark.parametrize("record", ['{"layout": "mechdiff-model-9"}', "{}", "[]", "?"])
def test_an_unknown_layout_is_refused(exported, tmp_path, record):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "record.json").write_text(record)
    checksums.write(folder)
    with pytest.raises(
        CheckpointError, match=r"model has layout .*, not 'mechdiff-model-1'; export the model"
    ):
        load_model(folder)


def test_an_absent_model_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere/SHA256SUMS is absent or damaged; name the folder"):
        load_model(tmp_path / "nowhere")


def test_a_model_of_another_network_is_refused_with_both_shapes(exported):
    other = {"conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(3)}}
    with pytest.raises(
        CheckpointError, match=r"conv/kernel is \(3, 3, 2, 3\) there and \(3, 3, 2, 4\) in the net"
    ):
        load_model(exported, other)
