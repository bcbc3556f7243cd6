"""Training: a loop that survives anything."""

import dataclasses
import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechdiff.core.config import DiffusionConfig, check_effective, override
from mechdiff.core.errors import BusyError, CheckpointError, ConfigError, MechdiffError, NumericsError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models import load
from mechdiff.storage import checkpoint, digests, exported, files, locks, run_log
from mechdiff.training import batches, loop, programs, step
from mechdiff.training.placement import data_parallel

ROOT = Path(__file__).parents[2]


def test_a_warmup_that_never_ends_is_warned_of(small, tmp_path, caplog):
    settings = ["data.name=gaussian", "train.steps=5"]
    loop.Trainer(override(small, [*settings, "train.warmup=4"]), tmp_path)._started(0)
    assert not caplog.text
    loop.Trainer(override(small, [*settings, "train.warmup=5"]), tmp_path)._started(0)
    assert "train.warmup=5 is not below train.steps=5: the learning rate rises until the last" in caplog.text


def test_losses_are_reported_at_no_more_timesteps_than_there_are():
    for steps in (2, 7, 8, 50):
        found = programs.eval_timesteps(make_schedule(DiffusionConfig(steps=steps)))
        assert len(np.unique(found)) == min(steps, 8)


def test_trainings_of_other_seeds_and_images_share_their_programs(small, setting):
    other = dataclasses.replace(small, name="other", seed=7, data=dataclasses.replace(small.data, n_train=9))
    made = programs.programs(small)
    assert programs.programs(override(other, ["train.keep=3"])) is made
    states = [made.init(np.uint32(config.seed)) for config in (small, other)]
    assert made.init._cache_size() == 1  # compiled once
    assert not np.array_equal(*(state.params["conv_in"]["conv"]["kernel"] for state in states))


def test_a_card_too_small_for_a_step_is_named_with_the_way_out(small, tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    monkeypatch.setattr(loop.Trainer, "_loop", full)
    with pytest.raises(
        MechdiffError, match=r"too small; raise train\.accumulate \(now 1\), lower train\.batch"
    ):
        loop.Trainer(override(small, ["data.name=gaussian"]), tmp_path).run()


@pytest.mark.parametrize(("count", "kind"), [(1, jax.errors.JaxRuntimeError), (2, MechdiffError)])
def test_the_end_of_another_process_is_one_line(small, tmp_path, monkeypatch, count, kind):
    def lost(*_, **__):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")

    monkeypatch.setattr(loop, "Trainer", lost)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    with pytest.raises(kind, match="another process of this run has ended" if count > 1 else "Gloo"):
        loop.train(small, tmp_path)


@pytest.mark.parametrize("setting", ["batch=7", "accumulate=8"])
def test_a_batch_that_does_not_divide_among_devices_is_refused(small, setting):
    with pytest.raises(ConfigError, match=r"train.batch=[78] .* 2 devices"):
        data_parallel(override(small, [f"train.{setting}"]).train)


def test_the_export_holds_config_losses_and_memorization(tiny, trained):
    config, _, _, record = load.load_trained(trained[0])
    assert config == tiny
    assert record["steps"] == 20 and record["images"] == 160
    assert len(record["test_loss_by_level"]) == 8 and np.isfinite(record["gap"])
    copies = [record["memorization"].pop(f"copies{end}") for end in ("_low", "", "_high")]
    assert 0 <= copies[0] <= copies[1] <= copies[2] <= 1
    ratio = [record["memorization"].pop(f"ratio{end}") for end in ("_low", "", "_high")]
    assert ratio == sorted(ratio)
    assert set(record["memorization"]) == {"samples_nearest", "held_out_nearest", "copies_expected"}
    assert [line["step"] for line in record["log"] if line["kind"] == "eval"] == [10, 20]
    assert (trained[0] / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def like(monkeypatch):
    """Runs take the programs of a config that have been compiled, whatever their own settings."""

    def take(config):
        monkeypatch.setattr(loop, "programs", lambda _: programs.programs(config))

    return take


@pytest.fixture
def unsampled(monkeypatch):
    """Runs that draw no samples: `trained` has drawn and exported some."""
    monkeypatch.setattr(loop.Trainer, "samples", lambda *_: np.zeros((4, 8, 8, 3), np.uint8))


class Stop(Exception):
    pass


def interrupted(config, workdir, step, monkeypatch):
    """Runs until the batch of `step` is asked for."""

    def batch_at(dataset, seed, now, *rest):
        if now >= step:  # made ahead of time, in a thread
            raise Stop
        return original(dataset, seed, now, *rest)

    original = batches.batch_at
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(batches, "batch_at", batch_at)
        loop.train(config, workdir)


@pytest.mark.usefixtures("unsampled")
@pytest.mark.parametrize("step", [3, 13])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tiny, trained, tmp_path, monkeypatch, step):
    interrupted(tiny, tmp_path, step, monkeypatch)
    resumed = load.load_trained(loop.train(tiny, tmp_path))
    whole = load.load_trained(trained[0])
    jax.tree.map(np.testing.assert_array_equal, resumed[1], whole[1])
    untimed = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in made[3]["log"]]
        for made in (resumed, whole)
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.usefixtures("unsampled")
def test_a_killed_process_resumes_to_the_same_parameters(tiny, trained, tmp_path):
    program = (
        "import sys, dataclasses, jax; from pathlib import Path; "
        "from mechdiff.training import loop, programs; from mechdiff.core.config import from_dict; "
        "from mechdiff.storage import files; "
        "jax.config.update('jax_num_cpu_devices', 2); programs.SAMPLES = programs.SAMPLE_STEPS = 4; "
        "loop.train(from_dict(files.read_json(sys.argv[1])), Path(sys.argv[2]))"
    )
    files.write_json(tmp_path / "config.json", dataclasses.asdict(tiny))
    command = [sys.executable, "-c", program, str(tmp_path / "config.json"), str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    saved = checkpoint.TrainCheckpoints(tmp_path / "run" / "checkpoints")
    while process.poll() is None and not saved.latest_step():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = load.load_trained(loop.train(tiny, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, resumed[1], load.load_trained(trained[0])[1])


@pytest.mark.usefixtures("unsampled")
def test_nan_stops_the_run_and_names_the_newest_checkpoint(tiny, tmp_path, monkeypatch):
    interrupted(tiny, tmp_path, 11, monkeypatch)
    trainer = loop.Trainer(tiny, tmp_path)
    step = trainer.programs.update

    def diverging(*args):
        state, metrics = step(*args)
        return state, metrics._replace(loss=jnp.where(state.step == 14, jnp.nan, metrics.loss))

    trainer.programs = trainer.programs._replace(update=diverging)
    with pytest.raises(NumericsError) as error:
        trainer.run()
    assert "step 13 is not finite" in str(error.value)
    assert "checkpoints/10 is the newest checkpoint" in str(error.value)
    assert str(error.value).endswith("and start in another --workdir")
    assert checkpoint.TrainCheckpoints(tmp_path / "checkpoints").latest_step() == 10


def test_another_config_does_not_continue_a_run(tiny, trained, like, monkeypatch):
    """But images whose digests are in the checkpoint may lie elsewhere; early checkpoints have none."""
    like(tiny)
    with pytest.raises(CheckpointError, match=r"train.learning_rate is 0.001 there and 0.01 here"):
        loop.train(override(tiny, ["train.learning_rate=0.01"]), trained[1])
    saved = checkpoint.TrainCheckpoints(trained[1] / "checkpoints")
    moved = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, cache="elsewhere", path="there"))
    monkeypatch.setattr(loop, "load_run_data", lambda *_: batches.load_run_data(tiny, trained[1] / "cache"))
    trainer = loop.Trainer(moved, trained[1])
    assert trainer._start(saved)[1] == 20
    monkeypatch.setattr(saved, "metadata", lambda _: {})
    with pytest.raises(CheckpointError, match=r'data.path is "" there and "there" here; use the same'):
        trainer._start(saved)


IDLE = ("diffusion.beta_start=0.001", "diffusion.min_snr_gamma=3", "train.label_dropout=0")


@pytest.mark.parametrize("setting", IDLE)
def test_settings_without_effect_are_refused_in_a_new_run(small, setting, like, tmp_path):
    like(small)
    with pytest.raises(ConfigError, match=rf"^{setting.partition('=')[0]}=\S+ has no effect beside "):
        loop.train(override(small, [setting]), tmp_path)
    used = ("diffusion.schedule=linear", "diffusion.weighting=min_snr", "unet.classes=2")
    check_effective(override(small, [*IDLE, *used]))


def test_settings_without_effect_do_not_end_a_run_that_has_begun(tiny, trained, monkeypatch):
    monkeypatch.setattr(loop, "check_effective", lambda _: pytest.fail("of a new run"))
    saved = checkpoint.TrainCheckpoints(trained[1] / "checkpoints")
    assert loop.Trainer(tiny, trained[1])._start(saved)[1] == 20


@pytest.mark.usefixtures("unsampled")
def test_more_steps_continue_a_finished_run(tiny, trained, tmp_path, like, caplog):
    like(tiny)  # with its learning rate
    shutil.copytree(trained[1], tmp_path / "run")
    longer = loop.train(override(tiny, ["train.steps=21"]), tmp_path / "run")
    assert load.load_trained(longer)[3]["steps"] == 21
    assert "train.steps=21 was 20 until step 20; the learning rate now decays over all 21" in caplog.text
    assert run_log.read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 21


def test_a_run_goes_on_neither_backwards_nor_on_other_images(tiny, trained, like, monkeypatch, caplog):
    like(tiny)
    with pytest.raises(ConfigError, match=r"20 steps are done in .*, train.steps=10 is fewer; raise it"):
        loop.train(override(tiny, ["train.steps=10"]), trained[1])
    read = loop.load_run_data

    def changed(*arguments):
        data = read(*arguments)
        return dataclasses.replace(data, train=dataclasses.replace(data.train, digest="0" * 64))

    monkeypatch.setattr(loop, "load_run_data", changed)
    with pytest.raises(ConfigError, match=r"the train images of .* have changed since step 20 \(64 of dig"):
        loop.train(override(tiny, ["train.steps=21"]), trained[1])


@pytest.mark.usefixtures("unsampled")
def test_kept_steps_are_exported_and_the_last_one_is_the_model(tiny, trained, tmp_path):
    """`train.keep` may be given late: what it names after the newest checkpoint is kept."""
    shutil.copytree(trained[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    config = override(tiny, ["train.keep=18,20"])
    model = loop.train(config, tmp_path / "run")
    earlier, last = (tmp_path / "run" / "snapshots" / step for step in ("18", "20"))
    assert exported.load_model(earlier)[2]["steps"] == 18
    params = [digests.digest_arrays(exported.load_model(folder)[0]) for folder in (earlier, last, model)]
    assert params[0] != params[1] and params[1] == params[2]
    with pytest.raises(ConfigError, match=r"train\.keep=21 is out of range"):
        override(tiny, ["train.keep=21"])


def test_no_model_is_exported_while_a_checkpoint_is_written(tiny, trained, tmp_path, monkeypatch):
    """Of several processes, those that count Orbax's barriers in another order would wait for ever."""
    done = []

    def noted(name, original):
        def call(*args, **kwargs):
            done.append(name)
            return original(*args, **kwargs)

        return call

    for owner, name in (
        (checkpoint.TrainCheckpoints, "save"),
        (checkpoint.TrainCheckpoints, "wait"),
        (exported, "export_model"),
    ):
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    shutil.copytree(trained[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    loop.train(override(tiny, ["train.keep=18"]), tmp_path / "run")
    assert done.count("export_model") == 2 and "save" in done
    for before, after in itertools.pairwise(done):
        assert after != "export_model" or before == "wait"


def test_the_speed_in_the_log_is_that_of_training_alone(small, tmp_path, monkeypatch):
    """A step takes two seconds here, or three from step 8 on, and an evaluation or sheet a hundred."""
    now, log = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0])
    settings = ("steps=12", "log_every=2", "eval_every=3", "sample_every=5", "save_every=12")
    config = override(small, ["data.name=gaussian", *(f"train.{setting}" for setting in settings)])

    def passing(seconds, result):
        now[0] += seconds
        return result

    def update(seed, state, *batch):
        after = dataclasses.replace(state, step=state.step + 1)
        return passing(2 if after.step <= 8 else 3, (after, step.Metrics(np.float32(1), np.float32(1))))

    trainer = loop.Trainer(config, tmp_path)
    trainer.programs = trainer.programs._replace(update=update)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(trainer, "evaluate", lambda _: passing(100, {"test_loss": 1.0}))
    monkeypatch.setattr(trainer, "samples", lambda _: passing(100, np.zeros((1, 8, 8, 3), np.uint8)))
    trainer._loop(step.TrainState(0, {}, {}, {}), 0, SimpleNamespace(save=lambda *_: None), log)
    rates = [line["images_per_second"] for line in log if line["kind"] == "train"]
    assert rates == [4.0] * 4 + [round(8 / 3, 2)] * 2


def test_a_folder_in_use_is_refused(tiny, tmp_path):
    with locks.lock(tmp_path), pytest.raises(BusyError, match="in use by process"):
        loop.train(tiny, tmp_path)
