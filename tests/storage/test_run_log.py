"""The log of a run: whole lines, the same after a kill and a resume; progress that suits the terminal."""

import io
import itertools
import json
import sys
import time
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.core.errors import DataError, MechdiffError
from mechdiff.storage import run_log
from mechdiff.storage.run_log import RunLog, read_log


def record(step: int) -> dict:
    return {"step": step, "loss": step / 7}


@settings(max_examples=25)
@given(data=st.data(), last=st.integers(1, 12))
def test_a_killed_and_resumed_run_has_the_log_of_an_uninterrupted_one(tmp_path_factory, data, last):
    folder = tmp_path_factory.mktemp("log")
    saved = data.draw(st.integers(0, last), "step of the checkpoint")
    killed = data.draw(st.integers(saved, last), "last step before the kill")
    with RunLog(folder / "whole") as log:
        for step in range(1, last + 1):
            log.append(record(step))
    with RunLog(folder / "resumed") as log:
        for step in range(1, killed + 1):
            log.append(record(step))
    torn = json.dumps(record(killed + 1))
    with (folder / "resumed").open("a") as file:
        file.write(torn[: data.draw(st.integers(0, len(torn)), "torn at")])
    with RunLog(folder / "resumed", resume_step=saved) as log:
        for step in range(saved + 1, last + 1):
            log.append(record(step))
    assert (folder / "resumed").read_bytes() == (folder / "whole").read_bytes()


def test_every_line_is_on_the_disk_as_soon_as_it_is_appended(tmp_path):
    log = RunLog(tmp_path / "deeper" / "log")
    for step in (1, 2):
        log.append(record(step))
        assert len(read_log(log.path)) == step
    log.close()


def test_reopening_keeps_all_lines_and_drops_a_torn_tail(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"step": 5}\n{"note": "no step"}\n{"step": 6, "lo')
    assert read_log(path) == [{"step": 5}, {"note": "no step"}]
    with RunLog(path) as log:
        log.append({"step": 7})
    assert read_log(path) == [{"step": 5}, {"note": "no step"}, {"step": 7}]


def test_rewind_keeps_lines_without_a_step(tmp_path):
    with RunLog(tmp_path / "log") as log:
        for line in ({"note": 1}, {"step": 1}, {"step": 2}):
            log.append(line)
        log.rewind(1)
        log.append({"step": 9})
    assert read_log(log.path) == [{"note": 1}, {"step": 1}, {"step": 9}]


def test_arrays_become_numbers_and_nan_becomes_null(tmp_path):
    with RunLog(tmp_path / "log") as log:
        log.append({"step": np.int32(1), "loss": np.float32("nan"), "norms": np.ones(2)})
    assert read_log(log.path) == [{"step": 1, "loss": None, "norms": [1.0, 1.0]}]


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"\xff", b""])
def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path, line):
    (tmp_path / "log").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"log: line 2 is not a JSON object"):
        RunLog(tmp_path / "log")


def test_a_full_disk_is_one_line(tmp_path):
    with RunLog(tmp_path / "log") as log:
        log._file.close()
        log._file = open("/dev/full", "ab", buffering=0)  # noqa: PTH123, SIM115
        with pytest.raises(MechdiffError, match=r"log: the disk is full"):
            log.append({"step": 1})


def test_a_line_that_fits_only_in_part_is_a_full_disk(tmp_path):
    class Short(io.BytesIO):
        def write(self, data):
            return super().write(data[:3])

    with RunLog(tmp_path / "log") as log:
        log._file.close()
        log._file = Short()
        with pytest.raises(MechdiffError, match="the disk is full"):
            log.append({"step": 1})


def test_progress_prints_plain_lines_with_speed_and_time_left_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(run_log, "PLAIN_SECONDS", 0.0)
    with run_log.progress(10, initial=2, desc="training") as bar:
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("training: 5/10, ") and "step/s" in lines[-1] and lines[-1].endswith(" left")
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_progress_is_silent_in_a_short_run_without_a_terminal(capsys):
    with run_log.progress(3) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix_str("loss 1")
    assert capsys.readouterr().err == ""


def test_progress_keeps_its_pace_however_often_it_is_refreshed(capsys, monkeypatch):
    clock = itertools.count(100)  # a second passes at each look
    monkeypatch.setattr(run_log.time, "monotonic", lambda: next(clock))
    with run_log.progress(1000) as bar:
        for _ in range(100):
            bar.set_postfix_str("loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.endswith("gone, loss 1") for line in lines)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(words, stream):
    limit = time.monotonic() + 20
    while words not in stream.getvalue():
        assert time.monotonic() < limit, stream.getvalue()
        time.sleep(0.005)


def test_progress_draws_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(run_log, "QUIET_SECONDS", 0.0)
    with run_log.progress(4, desc="sampling") as bar:
        bar.update(4)
        bar.refresh()
        assert "sampling: 100%" in sys.stderr.getvalue() and "\r" in sys.stderr.getvalue()


def test_bar_comes_after_a_while_and_goes_on_though_nothing_is_finished(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(run_log, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(run_log, "TICK_SECONDS", 0.01)
    with run_log.progress(4, desc="screening") as bar:
        assert sys.stderr.getvalue() == ""
        wait_for("screening:   0%", sys.stderr)
        drawn = len(sys.stderr.getvalue())
        bar.set_description_str("sampling", refresh=False)
        wait_for("sampling:   0%", sys.stderr)
    shown = sys.stderr.getvalue()
    assert len(shown) > drawn and not shown.rpartition("\r")[0].rpartition("\r")[2].strip()  # cleared again


def test_short_work_shows_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with run_log.progress(3) as bar:
        bar.update(3)
    assert sys.stderr.getvalue() == ""


def test_plain_line_comes_while_nothing_is_finished(capsys, monkeypatch):
    monkeypatch.setattr(run_log, "PLAIN_SECONDS", 0.02)
    monkeypatch.setattr(run_log, "TICK_SECONDS", 0.01)
    with run_log.progress(8, desc="sweep"):
        time.sleep(0.2)
    assert capsys.readouterr().err.splitlines()[0] == "sweep: 0/8, 00:00 gone"  # speed is not known yet


def test_a_reader_who_closes_the_pipe_does_not_stop_the_clock_which_holds_a_lock(monkeypatch):
    def closed(text):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: False, write=closed))
    monkeypatch.setattr(run_log, "PLAIN_SECONDS", 0.0)
    with run_log.progress(2, desc="sweep") as bar:
        bar.refresh()


def test_notebook_shows_a_bar_in_one_output_that_is_empty_at_the_end(monkeypatch):
    shell, shown = types.SimpleNamespace(kernel=None), []

    def display(content, raw, display_id=True):
        shown.append(content["text/plain"])
        return types.SimpleNamespace(update=display)

    module = types.SimpleNamespace(get_ipython=lambda: shell, display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(run_log, "QUIET_SECONDS", 0.0)
    with run_log.progress(4, desc="sampling") as bar:
        bar.update(4)
        bar.refresh()
        assert "sampling: 100%" in shown[-1]
    assert shown[-1] == "" and sys.stderr.getvalue() == ""
