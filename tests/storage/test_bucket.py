"""A work folder in a bucket: a run killed between two sendings goes on elsewhere to the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechdiff.core.errors import BusyError, ConfigError, DataError, MechdiffError
from mechdiff.storage import bucket

ROOT = Path(__file__).parents[2]
pytest.importorskip("s3fs", reason="needs the bucket extra")
server = pytest.importorskip("moto.server", reason="needs the test extra")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of an empty bucket on the loopback address."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MECHDIFF_MIRRORS": str(tmp_path_factory.mktemp("mirrors")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        bucket._file_system("s3://runs").mkdir("s3://runs")
        yield "s3://runs"
    running.stop()


def mirror(address, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return bucket.Mirror(address, folder)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_sent_is_fetched_and_what_is_gone_is_removed(store, tmp_path):
    here = mirror(f"{store}/plain", tmp_path / "here")
    names = "log.jsonl", "sweep.zarr/loss/.zarray", "sweep.zarr/loss/0.0", "cache/big.npy", ".a.json.1.tmp"
    for name in names:
        path = here.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    here.send()
    (here.folder / "log.jsonl").write_bytes(b"longer than before")
    (here.folder / "sweep.zarr" / "loss" / "0.0").unlink()
    here.send()
    there = mirror(f"{store}/plain", tmp_path / "there")
    there.fetch()
    assert content(there.folder) == {
        "log.jsonl": b"longer than before",
        "sweep.zarr/loss/.zarray": b"sweep.zarr/loss/.zarray",
    }
    left = {name.split("plain/")[1] for name in bucket._file_system(store).find(f"{store}/plain")}
    assert left == {bucket.LIST, bucket.LEASE, *content(there.folder)}


def test_a_run_killed_while_it_sends_leaves_a_list_of_files_that_are_there(store, tmp_path, monkeypatch):
    here = mirror(f"{store}/killed", tmp_path / "here")
    (here.folder / "5").mkdir()
    (here.folder / "5" / "a").write_text("old")
    here.send()
    (here.folder / "5" / "a").unlink()
    (here.folder / "10").mkdir()
    (here.folder / "10" / "a").write_text("new")
    monkeypatch.setattr(here, "_write", lambda name, what: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        here.send()
    there = mirror(f"{store}/killed", tmp_path / "there")
    there.fetch()
    assert content(there.folder) == {"5/a": b"old"}


def test_a_second_run_is_kept_out_until_the_lease_has_lapsed(store, tmp_path):
    first, second = (mirror(f"{store}/lease", tmp_path / name) for name in ("first", "second"))
    first.take_lease(60)
    with pytest.raises(
        BusyError, match=rf"in use by process {os.getpid()} on \S+; stop it, .* or wait \d+ s"
    ):
        second.take_lease(60)
    first.drop_lease()
    second.take_lease(-1)  # lapsed at once
    first.take_lease(60)


def test_the_lease_of_a_dead_process_of_this_machine_does_not_count(store, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    first, second = (mirror(f"{store}/dead", tmp_path / name) for name in ("first", "second"))
    first._who = first._who.replace(str(os.getpid()), str(dead.pid), 1)
    first.take_lease(60)
    second.take_lease(60)


def test_a_bucket_that_is_not_there_is_one_line(store, tmp_path):
    with pytest.raises(MechdiffError, match=r"^s3://absent/x: .*check the bucket's name, your credentials"):
        mirror("s3://absent/x", tmp_path / "here").send()


def test_a_list_that_leads_outside_is_refused(store, tmp_path):
    here = mirror(f"{store}/outside", tmp_path / "here")
    here._write(bucket.LIST, {"files": ["../../evil"]})
    with pytest.raises(DataError, match="outside of its folder"):
        here.fetch()


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address: (_ for _ in ()).throw(ImportError("s3fs")))
    with pytest.raises(ConfigError, match=r"pip install 'mechdiff\[bucket\]'"):
        bucket._file_system("s3://runs")


def test_a_plain_folder_is_itself(tmp_path):
    with bucket.local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path


PROGRAM = """
import os, signal, sys
from pathlib import Path
from mechdiff.storage import bucket
with bucket.local_copy(sys.argv[1], seconds=0.1) as folder:
    path = folder / "sum.txt"
    step, total = map(int, path.read_text().split()) if path.exists() else (0, 0)
    print(step, flush=True)
    for step in range(step, int(sys.argv[2])):
        total += step**2
        aside = folder / ".sum.tmp"
        aside.write_text(f"{step + 1} {total}")
        aside.replace(path)
        import time; time.sleep(0.05)
"""


def test_a_killed_run_goes_on_to_the_same_numbers(store, tmp_path):
    command = [sys.executable, "-c", PROGRAM, f"{store}/sum", "40"]
    there = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, **there)
    assert first.stdout.readline() == b"0\n"
    system = bucket._file_system(store)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        system.invalidate_cache()
        if (
            system.exists(f"{store}/sum/sum.txt")
            and int(system.cat_file(f"{store}/sum/sum.txt").split()[0]) > 3
        ):
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(command, capture_output=True, **there)
    assert again.returncode == 0, again.stderr
    assert 3 < int(again.stdout) < 40
    system.invalidate_cache()
    total = sum(step**2 for step in range(40))
    assert system.cat_file(f"{store}/sum/sum.txt") == f"40 {total}".encode()
    assert json.loads(system.cat_file(f"{store}/sum/{bucket.LIST}"))["files"] == ["sum.txt"]
    assert not system.exists(f"{store}/sum/{bucket.LEASE}")
