"""What is loaded is bitwise what was saved, or nothing is: kills, flipped bits, other configs, full disks."""

import contextlib
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.saved import CONFIG, PARAMS, assert_same, contents, flip

from mechdiff.core.errors import CheckpointError, MechdiffError
from mechdiff.storage import checkpoint
from mechdiff.storage.checkpoint import TrainCheckpoints
from mechdiff.storage.exported import export_model, load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("nothing_left_behind"),
]

ROOT = Path(__file__).parents[2]


def make_state(step: int) -> dict:
    """Parameters, EMA and optax state as the training loop has them; every leaf depends on `step`."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) * step, PARAMS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {"params": params, "ema": params, "optimizer": optimizer.init(params), "step": jnp.int32(step)}


def save_steps(folder: Path, *scores: float | None) -> None:
    """Saves steps 1, 2, ... with these scores."""
    with TrainCheckpoints(folder) as checkpoints:
        for step, score in enumerate(scores, 1):
            checkpoints.save(step, make_state(step), {"config": CONFIG, "data": "abc"}, score)


def snapshot(folder: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "checkpoints"
    save_steps(folder, 0.2, 0.3, 0.4)
    return folder


@pytest.fixture
def damaged_steps(three_steps, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(three_steps, tmp_path / "copy")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_model(tmp_path_factory.mktemp("models") / "model", PARAMS, CONFIG, {"loss": 0.25})


def test_a_state_comes_back_bitwise_with_its_metadata_and_structure(three_steps):
    state, metadata = TrainCheckpoints(three_steps).restore(jax.eval_shape(make_state, 0), config=CONFIG)
    assert_same(state, make_state(3))
    assert metadata["data"] == "abc" and metadata["config"]["unet"] == {"widths": [8, 16]}


def test_a_state_can_be_read_as_plain_containers(three_steps):
    plain = checkpoint.ocp.metadata(three_steps / "3").metadata
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), plain)
    state, _ = TrainCheckpoints(three_steps).restore(abstract)
    assert jax.tree.structure(state) != jax.tree.structure(make_state(3))
    assert_same(state["params"], make_state(3)["params"])


def test_the_newest_two_and_the_best_step_are_kept(tmp_path):
    save_steps(tmp_path, 0.5, 0.1, 0.4, None, float("nan"))
    checkpoints = TrainCheckpoints(tmp_path)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.latest_step() == 5
    assert_same(checkpoints.restore(make_state(0), step=2)[0], make_state(2))


def test_a_folder_without_checkpoints_has_no_steps(tmp_path):
    checkpoints = TrainCheckpoints(tmp_path / "absent")
    assert (checkpoints.steps(), checkpoints.latest_step()) == ([], None)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step None in .*absent"):
        checkpoints.restore(make_state(0))
    assert not (tmp_path / "absent").exists()


def test_saving_a_step_again_replaces_it(damaged_steps):
    with TrainCheckpoints(damaged_steps) as checkpoints:
        checkpoints.save(2, make_state(7), {"config": CONFIG}, 0.3)
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state(0), step=2)[0], make_state(7))


def test_saving_and_loading_are_silent(tmp_path, capfd):
    save_steps(tmp_path / "steps", 0.1)
    TrainCheckpoints(tmp_path / "steps").restore(make_state(0))
    export_model(tmp_path / "model", PARAMS, CONFIG, {})
    load_model(tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_reading_leaves_the_folders_untouched(three_steps, exported):
    before = snapshot(three_steps), snapshot(exported)
    TrainCheckpoints(three_steps).restore(make_state(0), step=2)
    load_model(exported)
    assert (snapshot(three_steps), snapshot(exported)) == before


def test_another_config_is_refused_with_both_values_of_every_field_that_differs(three_steps):
    other = {"seed": 1, "train": {"steps": 20, "batch": 4}, "unet": {"widths": [8]}, "new": True}
    expected = (
        "3 was made with another config: new is absent there and true here; "
        "train.steps is 10 there and 20 here; unet.widths is [8, 16] there and [8] here; use the same"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        TrainCheckpoints(three_steps).restore(make_state(0), config=other)


def test_ignored_fields_and_sections_may_differ(three_steps):
    other = {"seed": 1, "train": {"steps": 20, "batch": 4}, "unet": {}}
    checkpoints = TrainCheckpoints(three_steps)
    checkpoints.restore(make_state(0), config=other, ignore=["train.steps", "unet"])
    with pytest.raises(CheckpointError, match=r"config: train\.steps is 10 there"):
        checkpoints.restore(make_state(0), config=other, ignore=["train.step", "unet"])


def test_other_shapes_are_refused_with_both_shapes(three_steps):
    wrong = make_state(0)
    wrong["params"] = {"conv": {"kernel": PARAMS["conv"]["kernel"], "bias": jnp.zeros(5)}}
    with pytest.raises(CheckpointError, match=r"params/conv/bias is \(3,\) there and \(5,\) in the network"):
        TrainCheckpoints(three_steps).restore(wrong)
    wrong["params"] = {"conv": {"kernel": PARAMS["conv"]["kernel"]}}
    with pytest.raises(CheckpointError, match=r"params/conv/bias is \(3,\) there and absent in the network"):
        TrainCheckpoints(three_steps).restore(wrong)


def test_a_flipped_bit_in_any_file_of_a_step_is_an_error_or_harmless_but_never_wrong_numbers(damaged_steps):
    good = TrainCheckpoints(damaged_steps).restore(make_state(0))
    newest, detected = damaged_steps / "3", []
    for name in contents(newest):
        original = (newest / name).read_bytes()
        flip(newest / name)
        try:
            state, metadata = TrainCheckpoints(damaged_steps).restore(make_state(0))
        except CheckpointError as error:
            assert re.search(r"copy/3 is damaged .*; delete that folder to go on from step 2$", str(error))
            detected.append(name.parent.name)
        else:
            assert_same(state, good[0])
            assert metadata == good[1]
        (newest / name).write_bytes(original)
    assert "d" in detected  # where the numbers lie


def test_a_truncated_step_is_refused_and_deleting_it_goes_on_from_the_previous_one(damaged_steps):
    checkpoints = TrainCheckpoints(damaged_steps)
    largest = max((damaged_steps / "3").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    largest.write_bytes(largest.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"3 is damaged .*; delete that folder to go on from step 2"):
        checkpoints.restore(make_state(0))
    shutil.rmtree(damaged_steps / "3")
    assert_same(checkpoints.restore(make_state(0))[0], make_state(2))


def test_saving_goes_on_beside_a_step_whose_deletion_was_interrupted(damaged_steps):
    shutil.rmtree(damaged_steps / "1" / "state")
    with TrainCheckpoints(damaged_steps) as checkpoints:
        checkpoints.save(4, make_state(4), {"config": CONFIG}, 0.1)
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state(0))[0], make_state(4))


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
import jax.numpy as jnp
from mechdiff.storage.checkpoint import TrainCheckpoints

folder, pattern = Path(sys.argv[1]), sys.argv[2]

def watch():
    while not any(folder.glob(pattern)):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

def rename(source, *rest, original=os.rename, **options):
    if Path(source).parent == folder and Path(source).name.startswith("2."):
        time.sleep(300)  # the kill comes first, on a busy machine too
    original(source, *rest, **options)

def state(step):
    return {"a": jnp.arange(2_000_000) * 7919 * step}

checkpoints = TrainCheckpoints(folder)
checkpoints.save(1, state(1), {"config": {}})
checkpoints.wait()
threading.Thread(target=watch, daemon=True).start()
os.rename = os.replace = rename
checkpoints.save(2, state(2), {"config": {}})
checkpoints.close()
"""


@pytest.mark.parametrize("moment", ["2.*tmp*", "2.*tmp*/state*/**/d/*"])
def test_a_kill_while_saving_leaves_the_previous_step_and_the_next_run_saves_again(tmp_path, moment):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], cwd=ROOT, timeout=300)
    assert killed.returncode == -9
    assert list(tmp_path.glob("2.*tmp*")), "killed too late to have torn anything"
    state = {"a": jnp.arange(2_000_000) * 7919}
    with TrainCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert_same(checkpoints.restore(state)[0], state)
        checkpoints.save(2, state, {"config": {}})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


TWO_DEVICES = """
import sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import NamedSharding, PartitionSpec
from mechdiff.storage.checkpoint import TrainCheckpoints
from mechdiff.storage.exported import load_model

mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("batch"))
with TrainCheckpoints(sys.argv[1]) as checkpoints:
    abstract = {"a": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=split)}
    state, _ = checkpoints.restore(abstract)
    assert len(state["a"].sharding.device_set) == 2
    checkpoints.save(2, {"a": state["a"] + 1}, {"config": {}})
assert load_model(sys.argv[2])[1]["seed"] == 1
"""


def test_a_state_moves_between_numbers_of_devices(tmp_path, exported):
    start = {"a": jnp.arange(8.0)}
    checkpoints = TrainCheckpoints(tmp_path)
    checkpoints.save(1, start, {"config": {}})
    checkpoints.close()
    command = [sys.executable, "-W", "error", "-c", TWO_DEVICES, str(tmp_path), str(exported)]
    done = subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    state, _ = checkpoints.restore(jax.eval_shape(lambda: start))
    assert_same(state, {"a": np.arange(1.0, 9.0, dtype=np.float32)})
    assert len(state["a"].sharding.device_set) == 1


def test_a_full_disk_while_saving_is_one_line_and_the_earlier_steps_stay(damaged_steps, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device\nmore lines")

    checkpoints = TrainCheckpoints(damaged_steps)
    monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "save_async", full)
    with pytest.raises(CheckpointError, match=r"copy: the disk is full; free some space[^\n]*$"):
        checkpoints.save(4, make_state(4), {"config": CONFIG})
    checkpoints.close()
    assert_same(checkpoints.restore(make_state(0))[0], make_state(3))


def test_after_an_error_one_of_several_processes_does_not_wait_at_the_end(tmp_path, monkeypatch):
    """Orbax would wait for the others, and these wait for this one."""
    closed = []
    monkeypatch.setattr(checkpoint.TrainCheckpoints, "close", lambda self: closed.append(1))
    for processes, error in ((1, None), (1, MechdiffError), (2, None), (2, MechdiffError)):
        monkeypatch.setattr("jax.process_count", lambda count=processes: count)
        with contextlib.suppress(MechdiffError), checkpoint.TrainCheckpoints(tmp_path):
            if error:
                raise error
    assert len(closed) == 3


@pytest.mark.parametrize("joined", [False, True])
def test_an_error_in_a_thread_of_orbax_ends_one_of_several_processes(joined, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: joined)
    monkeypatch.setattr("mechdiff.core.processes.abandon", ended.append)

    def heard(level, file, error=None):
        error = (type(error), error, None) if error else None
        return checkpoint._heard(logging.LogRecord("absl", level, file, 1, "words", (), error))

    orbax = "/site-packages/orbax/checkpoint/_src"
    assert heard(logging.ERROR, f"{orbax}/x.py", ValueError("full")) == joined and not ended
    assert not heard(logging.WARNING, f"{orbax}/x.py")
    assert heard(logging.INFO, "/site-packages/other/x.py")
    assert heard(logging.ERROR, f"{orbax}/futures/future.py", ValueError("No space left on d\nx")) == joined
    assert ended == [2] * joined
    line = "error: checkpoint: the disk is full; free some space or choose another folder\n"
    assert capsys.readouterr().err == line * joined
