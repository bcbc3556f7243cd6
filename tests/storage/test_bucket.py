"""A work folder in a bucket: runs killed in the middle, and several that share one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mechdiff.core.errors import BusyError, ConfigError, DataError, MechdiffError
from mechdiff.storage import bucket, exchange, locks, objects, ownership, work_sharing
from mechdiff.storage.mirror import Mirror
from tests.reference import launching
from tests.reference.bucket_servers import gs, s3

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module", params=[s3, gs], ids=lambda server: server.__name__)
def store(request, tmp_path_factory):
    """The address of an empty bucket on the loopback address."""
    with request.param() as settings, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHDIFF_MIRRORS", str(tmp_path_factory.mktemp("mirrors")))
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(exchange, "POLL_SECONDS", 0.05)
        address = f"{request.param.__name__}://runs"
        objects.Objects(address).system.mkdir("runs")
        yield address


# Of what is above `objects`, where nothing depends on whose bucket it is.
of_one_client = pytest.mark.parametrize("store", [s3], ids=["s3"], indirect=True)


@pytest.fixture
def address(store, request):
    return f"{store}/{request.node.originalname}"


def joined(address, folder, lease_seconds=60.0):
    folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(address, folder, lease_seconds)
    mirror.join()
    return mirror


def on_another_machine(mirror, monkeypatch):
    """From now on it is not seen whether a process of its number runs here."""
    monkeypatch.setattr(mirror.members, "id", mirror.members.id.replace(ownership._machine(), "elsewhere"))


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_sent_is_fetched_and_what_is_gone_is_removed(address, tmp_path):
    here = joined(address, tmp_path / "here")
    names = "log.jsonl", "sweep.zarr/loss/.zarray", "sweep.zarr/loss/0.0", "cache/big.npy", ".a.json.1.tmp"
    for name in names:
        path = here.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    here.send()
    (here.folder / "log.jsonl").write_bytes(b"longer than before")
    (here.folder / "sweep.zarr" / "loss" / "0.0").unlink()
    here.send()
    there = joined(address, tmp_path / "there")
    expected = {"log.jsonl": b"longer than before", "sweep.zarr/loss/.zarray": b"sweep.zarr/loss/.zarray"}
    assert content(there.folder) == expected
    assert {name for name in here.objects.names("") if not name.startswith("mechdiff-")} == set(expected)


@of_one_client
def test_only_what_is_being_written_is_not_sent(address, tmp_path):
    """Results of a model called `faces.old` are results: they were thrown away with exit 0."""
    here = joined(address, tmp_path / "here")
    sent = {
        f"subjects/{model}/{file}"
        for model in ("faces.old", "a.tmp", "b.lock-2", "c.partial", "d.tmp.old", "e.orbax-checkpoint-tmp-x")
        for file in ("subject.json", "sweep.zarr/loss/0.0", "sweep.zarr/.zarray")
    }
    unfinished = (
        ".lock", "a/.lock", ".a.json.17.tmp", ".a.zarr.0123abcd.tmp/loss/0", ".a.zarr.0123abcd.tmp.old/0",
        f"a.zarr/loss/0.{'0f' * 16}.partial", f"a.zarr/.zarray.{'0f' * 16}.partial", ".log.jsonl.partial",
        "5.orbax-checkpoint-tmp/a", "5.orbax-checkpoint-tmp-1717/a",
    )  # fmt: skip
    for name in (*sent, *unfinished):
        path = here.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    here.send()
    assert set(here.sent) == sent


@of_one_client
def test_a_run_killed_while_it_sends_leaves_a_list_of_files_that_are_there(address, tmp_path, monkeypatch):
    here = joined(address, tmp_path / "here")
    (here.folder / "5").mkdir()
    (here.folder / "5" / "a").write_text("old")
    here.send()
    (here.folder / "5" / "a").unlink()
    (here.folder / "10").mkdir()
    (here.folder / "10" / "a").write_text("new")
    write = here.objects.put

    def killed(name, what):
        write(name, what)
        if name == "10/a":
            raise KeyboardInterrupt

    monkeypatch.setattr(here.objects, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        here.send()
    there = joined(address, tmp_path / "there")
    assert content(there.folder) == {"5/a": b"old"}


def test_what_others_add_comes_and_what_was_removed_here_does_not_come_back(address, tmp_path):
    first, second = (joined(address, tmp_path / name) for name in ("first", "second"))
    for name in ("kept", "removed"):
        (first.folder / name).write_text("1")
    first.send()
    second.refresh()
    assert content(second.folder) == {"kept": b"1", "removed": b"1"}
    (second.folder / "removed").unlink()
    (second.folder / "kept").write_text("changed here")
    (first.folder / "kept").write_text("changed there")
    (first.folder / "added").write_text("2")
    first.send()
    second.refresh(changed=True)
    assert content(second.folder) == {"kept": b"changed here", "added": b"2"}
    second.send()
    first.refresh(changed=True)
    assert content(first.folder) == {"kept": b"changed here", "added": b"2", "removed": b"1"}


def test_of_many_that_take_a_name_at_once_one_has_it(address, tmp_path):
    mirrors = [joined(address, tmp_path / str(i)) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda i: mirrors[i % 4].take(f"work/{i // 4}"), range(16)))
    assert [sum(taken[4 * i : 4 * i + 4]) for i in range(4)] == [1] * 4


def test_a_second_run_is_kept_out_of_a_locked_folder(address, tmp_path):
    first, second = (joined(address, tmp_path / name) for name in ("first", "second"))
    with exchange.announced(first), exchange.announced(second):
        with locks.lock(first.folder / "a"):
            line = rf"results folder {address} is in use by process {os.getpid()} on \S+; wait for it, "
            with pytest.raises(BusyError, match=line), locks.lock(second.folder / "a"):
                pass
            with locks.lock(second.folder / "b"):
                pass
            (first.folder / "a" / "made").write_text("1")
        with locks.lock(second.folder / "a"):  # what the first did is here
            assert (second.folder / "a" / "made").read_text() == "1"


@of_one_client
def test_the_names_of_a_dead_process_of_this_machine_are_free(address, tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    first = joined(address, tmp_path / "first")
    first.members.forget(first.members.id)
    monkeypatch.setattr(first.members, "id", first.members.id.replace(str(os.getpid()), str(dead.pid), 1))
    first.members.renew({})
    assert first.take("locks/a")
    assert joined(address, tmp_path / "second").take("locks/a")


@of_one_client
def test_the_names_of_a_silent_process_of_another_machine_are_free_after_its_lease(
    address, tmp_path, monkeypatch
):
    first = joined(address, tmp_path / "first", 3.0)
    on_another_machine(first, monkeypatch)
    first.members.renew({})
    second = joined(address, tmp_path / "second", 3.0)
    assert first.take("locks/a") and not second.take("locks/a")
    deadline = time.monotonic() + 60
    while not second.take("locks/a"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with pytest.raises(BusyError, match=r"this process sent nothing for 3 s, and process \d+ on"):
        first.send()


def test_a_bucket_that_is_not_there_is_one_line(store, tmp_path):
    scheme = store.split(":")[0]
    with pytest.raises(MechdiffError, match=rf"^{scheme}://absent/x: .*check the bucket's name, your cred"):
        joined(f"{scheme}://absent/x", tmp_path / "here")


@of_one_client
def test_a_list_that_leads_outside_is_refused(address, tmp_path):
    here = joined(address, tmp_path / "here")
    here.members.renew({"../../evil": (1, 1)})
    with pytest.raises(DataError, match="outside of its folder"):
        joined(address, tmp_path / "there")


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address: (_ for _ in ()).throw(ImportError("s3fs")))
    with pytest.raises(ConfigError, match=r"pip install 'mechdiff\[bucket\]'"):
        objects.Objects("s3://runs")


def test_a_plain_folder_is_itself(tmp_path):
    with bucket.local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path and exchange.of(folder) is None


@of_one_client
def test_launchers_show_the_address_and_not_the_copy(address, capsys):
    def main(config, workdir):
        (workdir / "page.html").write_text("")
        print(workdir / "page.html")
        if config.seed:
            raise DataError(f"{workdir}/page.html is empty")
        return {"page": workdir / "page.html"}

    shown = f"{address}/page.html"
    assert launching.launch("reproduce", f"--workdir={address}", "--json", main=main) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["workdir"], facts["result"], facts["written"]) == (address, {"page": shown}, [shown])
    assert launching.launch("reproduce", f"--workdir={address}", "--set=seed=1", main=main) == 2
    out, err = capsys.readouterr()
    assert out == f"{shown}\n" and err.splitlines()[-1] == f"error: {shown} is empty"
    assert objects.Objects(address).get("page.html", Path(os.environ["MECHDIFF_MIRRORS"]) / "fetched")


def test_two_that_fill_one_store_share_its_pieces_and_both_have_all(address, tmp_path):
    mirrors = [joined(address, tmp_path / name) for name in ("first", "second")]
    computed = []
    together = threading.Barrier(2)

    def fill(mirror):
        folder = mirror.folder / "store"
        folder.mkdir()

        def compute(piece):
            computed.append(piece)
            time.sleep(0.02)
            (folder / f"{piece}").write_text(str(piece**2))

        together.wait()
        work_sharing.run_missing(folder, range(12), lambda i: (folder / f"{i}").exists(), compute, "")
        return content(folder)

    with exchange.announced(mirrors[0]), exchange.announced(mirrors[1]), ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fill, mirrors)
    assert sorted(computed) == list(range(12))
    assert first == second == {str(i): str(i**2).encode() for i in range(12)}


@of_one_client
def test_a_piece_that_is_never_done_is_computed_once_by_each_and_both_end(address, tmp_path):
    """Such as one whose loss is not finite: it was computed without end, and waited for."""
    mirrors = [joined(address, tmp_path / name) for name in ("first", "second")]
    together = threading.Barrier(2)

    def fill(mirror):
        folder, computed = mirror.folder / "store", []
        folder.mkdir()

        def compute(piece):
            computed.append(piece)
            assert len(computed) <= 6
            if piece not in (1, 4):
                (folder / f"{piece}").write_text("1")

        together.wait()
        work_sharing.run_missing(folder, range(6), lambda i: (folder / f"{i}").exists(), compute, "")
        return computed

    with exchange.announced(mirrors[0]), exchange.announced(mirrors[1]), ThreadPoolExecutor(2) as pool:
        computed = [each.result(60) for each in [pool.submit(fill, mirror) for mirror in mirrors]]
    assert sorted(piece for each in computed for piece in each) == [0, 1, 1, 2, 3, 4, 4, 5]
    assert all(len(set(each)) == len(each) for each in computed)


@of_one_client
def test_a_process_lives_while_it_sends_something_that_takes_long(address, monkeypatch):
    under_way, enough, beats = threading.Event(), threading.Event(), []
    put, renew = objects.Objects.put, ownership.Members.renew

    def slow(self, name, what):
        if name == "large":
            under_way.set()
            enough.wait(60)
            under_way.clear()
        put(self, name, what)

    def counted(self, *args, **options):
        renew(self, *args, **options)
        beats.extend([1] * under_way.is_set())
        if len(beats) == 2:
            enough.set()

    monkeypatch.setattr(objects.Objects, "put", slow)
    monkeypatch.setattr(ownership.Members, "renew", counted)
    with bucket.local_copy(address, seconds=0.1) as folder:
        (folder / "large").write_bytes(b"1")
        assert enough.wait(60)
    assert len(beats) >= 2


@of_one_client
@pytest.mark.parametrize(
    "failure", [PermissionError("Forbidden: the token has expired"), KeyboardInterrupt()]
)
def test_what_the_last_sending_did_not_send_is_kept(address, monkeypatch, capsys, failure):
    """The same command deleted it, ten hours of work, before it began."""

    def put(self, name, content):
        with self._plain_errors():
            raise failure

    with (
        monkeypatch.context() as patch,
        pytest.raises((MechdiffError, KeyboardInterrupt)) as raised,
        bucket.local_copy(address) as first,
    ):
        (first / "result.json").write_text("1")
        patch.setattr(objects.Objects, "put", put)
    (line,) = [each for each in (str(raised.value), capsys.readouterr().err) if "what was not sent" in each]
    kept = Path(line.partition("--workdir=")[2].partition(" goes on")[0])
    with bucket.local_copy(address) as again:
        assert again == first and not content(again)
    assert content(kept) == {"result.json": b"1"}


PROGRAM = """
import sys, time
from mechdiff.storage import bucket, work_sharing
with bucket.local_copy(sys.argv[1], seconds=0.1) as folder:
    done = []
    def compute(i):
        if len(done) == 5:
            time.sleep(600)  # with this piece in hand it is killed
        done.append(i)
        aside = folder / f".{i}.tmp"
        aside.write_text(str(i**2))
        aside.replace(folder / f"{i}")
        time.sleep(0.3)
    work_sharing.run_missing(folder, range(20), lambda i: (folder / f"{i}").exists(), compute, "")
"""


@of_one_client
def test_a_run_goes_on_where_another_that_shares_it_is_killed(address, tmp_path):
    there = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    other = subprocess.Popen([sys.executable, "-c", PROGRAM, address], **there)
    seen = objects.Objects(address)
    deadline = time.monotonic() + 200
    while len([name for name in seen.names("") if not name.startswith("mechdiff-")]) < 3:
        assert time.monotonic() < deadline and other.poll() is None
        time.sleep(0.1)
    computed = []
    with bucket.local_copy(address, seconds=0.1) as folder:

        def compute(i):
            computed.append(i)
            (folder / f"{i}").write_text(str(i**2))
            if len(computed) == 3:  # both are at it
                assert other.poll() is None
                other.send_signal(signal.SIGKILL)
                other.wait()

        work_sharing.run_missing(folder, range(20), lambda i: (folder / f"{i}").exists(), compute, "")
        assert content(folder) == {str(i): str(i**2).encode() for i in range(20)}
    assert 3 < len(computed) <= 17 and len(set(computed)) == len(computed)
    whole = [seen.system.cat_file(seen.path(str(i))) for i in range(20)]
    assert whole == [str(i**2).encode() for i in range(20)]


@of_one_client
def test_who_follows_sends_nothing_and_has_at_the_end_what_the_other_has(address, tmp_path):
    first, second = (joined(address, tmp_path / name) for name in ("first", "second"))
    (first.folder / "4").write_text("step 4")
    first.send()
    second.refresh()
    with second.following():
        for mirror, content_of in ((first, "one"), (second, "two")):
            (mirror.folder / "8").write_text(content_of)
            (mirror.folder / f"only {content_of}").write_text(content_of)
        (first.folder / "4").unlink()
        second.exchange()
        first.send()
        assert second.members.objects.read(f"{ownership.MEMBERS}/{second.members.id}.json")["files"] == {}
    second.leave()
    expected = {"8": b"one", "only one": b"one"}
    assert content(second.folder) == content(first.folder) == expected
    assert {name for name in first.objects.names("") if not name.startswith("mechdiff-")} == set(expected)


@of_one_client
def test_one_that_fails_while_it_follows_sends_nothing(address, tmp_path):
    first, second = (joined(address, tmp_path / name) for name in ("first", "second"))
    with pytest.raises(KeyboardInterrupt), second.following():
        (second.folder / "half").write_text("made")
        raise KeyboardInterrupt
    second.leave()
    assert joined(address, tmp_path / "third").sent == first.sent == {}
