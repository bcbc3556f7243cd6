"""Atomic writes, digests, the lock of a folder, and the lines that errors of the disk become."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.core.errors import BusyError, DataError, MechdiffError
from mechdiff.storage import digests, files, locks, manifest

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(code: int):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def test_write_atomic_replaces_the_content_and_leaves_nothing_aside(tmp_path):
    files.write_atomic(tmp_path / "a", "old")
    files.write_atomic(tmp_path / "a", b"new\x00")
    assert (tmp_path / "a").read_bytes() == b"new\x00"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_content_and_says_one_line(tmp_path, monkeypatch, step):
    path = tmp_path / "a"
    files.write_atomic(path, "old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), failing(errno.ENOSPC))
    with pytest.raises(MechdiffError, match=r"a: the disk is full; free some space") as caught:
        files.write_atomic(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EDQUOT])
def test_errors_of_the_disk_become_one_line_with_a_way_out(code):
    one_line = r"^/some/folder: [^\n]*; [^\n]*choose [^\n]*$"
    with pytest.raises(MechdiffError, match=one_line), files.plain_errors("/some/folder"):
        failing(code)()


def test_other_errors_pass_through_plain_errors_unchanged():
    with pytest.raises(InterruptedError), files.plain_errors("x"):
        failing(errno.EINTR)()


def test_a_name_that_is_too_long_is_refused_by_the_real_file_system(tmp_path):
    with pytest.raises(MechdiffError, match="the name is too long"):
        files.write_atomic(tmp_path / ("x" * 300), "")


def test_ensure_writable_creates_the_folder_and_leaves_it_empty(tmp_path):
    folder = files.ensure_writable(tmp_path / "a" / "b")
    assert folder.is_dir() and not names(folder)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_ensure_writable_names_a_file_that_stands_in_the_way(tmp_path, below):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MechdiffError, match=r"taken\S*: a file stands where a folder is needed"):
        files.ensure_writable(tmp_path / "taken" / below)


def test_ensure_writable_tries_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "TemporaryFile", failing(errno.EROFS))
    with pytest.raises(MechdiffError, match="the file system is read-only; choose another folder"):
        files.ensure_writable(tmp_path)


def test_json_survives_the_round_trip_with_arrays_tuples_and_nan_made_plain(tmp_path):
    data = {"a": (1, 2.5), "b": np.float32(0.5), "c": jnp.arange(2), "d": np.nan, 3: Path("x"), "e": True}
    files.write_json(tmp_path / "a.json", data)
    expected = {"a": [1, 2.5], "b": 0.5, "c": [0, 1], "d": None, "3": "x", "e": True}
    assert files.read_json(tmp_path / "a.json") == expected
    assert "NaN" not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"{'a': 1}"])
def test_malformed_json_is_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: not valid JSON [^\n]*$"):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"records": []}'])
def test_json_of_another_kind_is_one_line_that_names_the_file_and_what_it_lacks(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json lacks (records, )?methods; restore the file, or delete it"):
        files.read_record(tmp_path / "x.json", ("records", "methods"))


@pytest.mark.parametrize("content", ['{"records": null}', '{"records": [], "methods": 3}', "[]", "null"])
def test_json_with_values_of_another_type_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json[: ][^\n]*; restore the file, or delete it"):
        files.read_record(tmp_path / "x.json", {"records": list}, {"methods": list})


@pytest.mark.parametrize("use", [lambda: {}["a"], lambda: None + 1, lambda: [].pop(), lambda: int("x")])
def test_what_goes_wrong_while_a_damaged_file_is_put_to_use_is_one_line(use):
    words = r"^x\.json is not what was written there \([^\n]*\); restore"
    with pytest.raises(DataError, match=words), files.interpreting("x.json"):
        use()


def test_absent_json_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"b\.json: no such file or folder"):
        files.read_json(tmp_path / "b.json")


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=5), st.randoms())
def test_json_digest_ignores_the_order_of_keys_and_nothing_else(data, random):
    items = list(data.items())
    random.shuffle(items)
    assert digests.digest_json(dict(items)) == digests.digest_json(data)
    assert digests.digest_json({**data, "new": 0}) != digests.digest_json(data)


def test_array_digest_ignores_insertion_order_and_the_device():
    single = {"a": np.arange(6.0, dtype=np.float32), "b": {"c": np.int32(3)}}
    other = {"b": {"c": jnp.int32(3)}, "a": jnp.arange(6.0)}
    assert digests.digest_arrays(single) == digests.digest_arrays(other)


def test_array_digest_ignores_the_layout_in_memory():
    matrix = np.arange(6.0).reshape(2, 3)
    assert digests.digest_arrays([matrix]) == digests.digest_arrays([np.asfortranarray(matrix)])


def test_array_digest_tells_values_shapes_dtypes_paths_and_zero_signs_apart():
    base = np.zeros(4, np.float32)
    trees = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 2)},
        {"a": base.view(np.int32)},
        {"a": jnp.zeros(8, jnp.bfloat16)},
        {"a": -base},
        {"a": base, "b": base[:0]},
        {"a": np.nextafter(base, np.float32(1))},
        {"a": jax.random.key(0)},  # as the state of NNX's dropout has them
        {"a": jax.random.key(1)},
    ]
    assert len({digests.digest_arrays(tree) for tree in trees}) == len(trees)


def test_code_digest_follows_numerical_sources_only(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    for name in ("a.py", "report/b.py", "c.txt"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(digests, "PACKAGE", tmp_path)

    def changed(name: str) -> bool:
        before = digests.code_digest.__wrapped__()
        (tmp_path / name).write_text("2")
        return digests.code_digest.__wrapped__() != before

    assert [changed(name) for name in ("a.py", "report/b.py", "c.txt")] == [True, False, False]


def test_a_folder_held_by_a_live_process_is_busy_until_that_process_is_killed(tmp_path):
    script = f"""if True:
        import time
        from mechdiff.storage.locks import lock
        with lock({str(tmp_path)!r}):
            print("held", flush=True)
            time.sleep(100)
    """
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline() == "held\n"
            busy = rf"{tmp_path} is in use by process {child.pid} on \S+; wait for it"
            with pytest.raises(BusyError, match=busy), locks.lock(tmp_path):
                pass
        finally:
            child.kill()
    with locks.lock(tmp_path) as folder:
        assert folder == tmp_path


def test_a_folder_is_held_once_even_within_a_process_and_freed_after_an_error(tmp_path):
    busy = pytest.raises(BusyError, match=f"process {os.getpid()} on")
    with busy, locks.lock(tmp_path), locks.lock(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="of the block"), locks.lock(tmp_path):
        raise FileNotFoundError("of the block")
    with locks.lock(tmp_path):
        pass


def test_manifest_is_json_and_names_versions_devices_and_code(tmp_path):
    made = manifest.run_manifest({"seed": 3, "widths": (1, 2)}, data="abc")
    assert json.loads(json.dumps(made)) == made
    assert made["config"] == {"seed": 3, "widths": [1, 2]} and made["data"] == "abc"
    assert made["packages"]["numpy"] == np.__version__
    assert made["devices"] and made["code"] == digests.code_digest()
    assert made["started"].endswith("+00:00")
    assert "/" not in made["command"][0]


def test_replacing_the_manifest_of_other_results_is_warned_of(tmp_path, caplog):
    training, sweep = {"parameters": 3}, {"models": ["a"]}
    for made in (training, training):
        manifest.write(tmp_path, made)
    assert not caplog.text and files.read_json(tmp_path / "manifest.json") == training
    manifest.write(tmp_path, sweep)
    manifest.write(tmp_path, {"models": ["b"]})
    manifest.write(tmp_path, training)
    assert [record.message.count("manifest.json was of other results") for record in caplog.records] == [1, 1]


def test_the_digest_of_device_arrays_is_remembered_for_the_same_arrays_alone(monkeypatch):
    trees = [{"a": jnp.arange(3.0)}, {"a": jnp.arange(3.0) + 1}, {"b": jnp.arange(3.0)}]
    trees.append({"b": trees[0]["a"]})  # the same array by another name
    trees.append({"a": np.arange(3.0, dtype=np.float32)})  # can be written to
    expected = [digests.digest_arrays(tree) for tree in trees]
    assert [digests.digest_device_arrays(tree) for tree in trees for _ in range(2)] == [
        digest for digest in expected for _ in range(2)
    ]
    digests.digest_device_arrays(trees[0])
    trees[4]["a"][0] = 7
    assert digests.digest_device_arrays(trees[4]) == digests.digest_arrays(trees[4]) != expected[0]
    monkeypatch.setattr(digests, "digest_arrays", lambda tree: "computed")
    assert digests.digest_device_arrays(trees[0]) == expected[0]
    assert digests.digest_device_arrays(trees[1]) == "computed"
