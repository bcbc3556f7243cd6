"""TensorBoard is shown the numbers of the log, and those after a resumed step once."""

import struct
import sys

import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.storage import run_log
from mechdiff.storage.tensorboard import TensorBoardLog

RECORDS = (
    {"step": 5, "kind": "train", "loss": 0.5, "images_per_second": 3, "note": "no number"},
    {"step": 10, "kind": "eval", "test_loss": 0.25, "by_timestep": [0.1, 0.4]},
)


def events(folder):
    """All events of a folder's files, in the order of their writing: records of length, checksum, message."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4


def scalars(folder):
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def test_numbers_become_scalars_and_the_log_is_as_ever(tmp_path):
    pytest.importorskip("tensorboardX")
    with TensorBoardLog(tmp_path / "log.jsonl", tmp_path / "events") as log:
        for record in RECORDS:
            log.append(record)
    assert run_log.read_log(tmp_path / "log.jsonl") == [dict(record) for record in RECORDS]
    expected = [("train/loss", 5, 0.5), ("train/images_per_second", 5, 3.0), ("eval/test_loss", 10, 0.25)]
    assert scalars(tmp_path / "events") == expected


def test_a_resumed_run_tells_from_which_step_on_it_writes_anew(tmp_path):
    pytest.importorskip("tensorboardX")
    with TensorBoardLog(tmp_path / "log.jsonl", tmp_path / "events", 5) as log:
        log.append(RECORDS[1])
    starts = [event.step for event in events(tmp_path / "events") if event.HasField("session_log")]
    assert starts == [6]


def test_without_tensorboardx_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"mechdiff\[tensorboard\]"):
        TensorBoardLog(tmp_path / "log.jsonl", tmp_path / "events")
