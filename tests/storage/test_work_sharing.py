"""One sweep over several devices and several processes, against two devices of one process."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference.launching import launch
from reference.networks import random_params
from reference.ports import free_port

from mechdiff.core.config import UNetConfig, to_dict
from mechdiff.storage import exported, files, labelled, work_sharing

ROOT = Path(__file__).parents[2]
SAMPLING = ["--preset=tiny", "--debug"]
SETTINGS = ("reference_images=4", "image_block=3", "images=6", "timesteps=4")
FLAGS = [*SAMPLING, *(f"--set=sweep.{setting}" for setting in SETTINGS)]
UNET = UNetConfig(  # the least network with what is shared: each of many processes compiles it
    image_size=8, widths=(8,), heads=(2,), norm_groups=4,
    down_attention=(True,), up_attention=(False,), mid_attention=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """Folder of a network that was never trained."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    drawn = dataclasses.replace(tiny.data, name="gaussian")  # no program is compiled to draw it
    config = to_dict(dataclasses.replace(tiny, unet=UNET, data=drawn))
    return exported.export_model(folder, random_params(UNET), config, {}, extras={"samples.png": b""})


def launches(model, workdir):
    """A sweep and a sweep of trajectories."""
    place = [f"--model={model}", f"--workdir={workdir}"]
    walks = ["sweep_sampling", *place, *SAMPLING, "--samples=8", "--steps=3", "--windows=1"]
    return [["sweep", *place, *FLAGS], walks]


def started(launches, devices):
    """A process of its own that does `launches`."""
    command = [sys.executable, "-m", "tests.reference.launching", json.dumps(launches)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def finished(*processes):
    """What they printed on stdout, each."""
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err[-2000:]
        printed.append(out)
    return printed


def table(workdir):
    (store,) = (workdir / "subjects").glob("*/sweep.zarr")
    return labelled.read(store)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """Work folders of both sweeps, on the two devices of this process and on eight."""
    two, eight = (tmp_path_factory.mktemp(name) for name in ("two", "eight"))
    process = started(launches(model, eight), 8)
    for name, *flags in launches(model, two):
        assert launch(name, *flags) == 0
    finished(process)
    return two, eight


@pytest.fixture(scope="module")
def alone(folders):
    return table(folders[0])


def same(actual, expected):
    for name in ("loss", "change", "clean_loss"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=5e-5, atol=1e-9)


def test_eight_devices_give_the_numbers_of_two(folders, alone):
    """And two give those of one: see `test_shared_prefix`."""
    same(table(folders[1]), alone)


def test_a_sweep_keeps_its_manifest_where_another_command_writes_into_its_folder(folders):
    (own,) = folders[0].glob("subjects/*/manifest.json")
    made, last = (files.read_json(path) for path in (own, folders[0] / "manifest.json"))
    assert made["models"] == last["models"] == [own.parent.name]
    assert made["config"] != last["config"]  # that of the walks


def interrupted(monkeypatch, *flags):
    """A sweep that is stopped once its first piece is there."""
    whole = work_sharing.run_missing

    def first_alone(store, pieces, done, compute, title):
        def once(piece):
            compute(piece)
            raise KeyboardInterrupt

        whole(store, pieces, done, once, title)

    with monkeypatch.context() as patch:
        patch.setattr(work_sharing, "run_missing", first_alone)
        return launch(*flags)


def test_two_joined_processes_finish_what_another_began(model, alone, tmp_path, monkeypatch):
    sweep, _ = launches(model, tmp_path)
    assert interrupted(monkeypatch, *sweep) == 130
    left = sorted(tmp_path.glob("subjects/*/sweep/*.zarr/loss/?.*"))
    assert left
    before = [path.stat().st_mtime_ns for path in left]
    address = f"localhost:{free_port()}"
    pair = [f"--coordinator={address}", "--processes=2"]
    pair += ["--json"]
    printed = finished(*(started([[*sweep, *pair, f"--process_id={i}"]], 2) for i in (0, 1)))
    assert [json.loads(text)["workdir"] for text in printed] == [str(tmp_path)] * 2
    assert [path.stat().st_mtime_ns for path in left] == before  # what was there was not done again
    same(table(tmp_path), alone)


def test_eight_devices_walk_trajectories_as_two_do(folders):
    """And two as one does: see `test_sampling`."""
    two, eight = (labelled.read(*(folder / "trajectories").glob("*.zarr")) for folder in folders)
    assert float(two.distance.max()) > 0.01
    for name in ("distance", "set_distance"):
        np.testing.assert_allclose(eight[name], two[name], rtol=2e-4, atol=2e-5)


def test_pairs_are_scored_run_and_saved_and_unknown_components_refused(model, tmp_path, capsys):
    place = [f"--model={model}", f"--workdir={tmp_path}", *FLAGS, "--nodebug"]
    few = ["--set=sweep.images=4", "--set=sweep.timesteps=1", "--components=down0.*head."]
    assert launch("interactions", *place, *few) == 0
    kept, table = files.read_json(tmp_path / "pairs.json"), labelled.read(tmp_path / "pairs.zarr")
    (pair,) = kept["pairs"]
    assert (pair["a"], pair["b"]) == ("down0.attn0.head0", "down0.attn0.head1")
    assert pair["low"] <= pair["estimate"] <= pair["high"] and pair["p"] <= 1 and not pair["audited"]
    interaction = 100 * (table.interaction.mean("image") / table.clean_loss.mean("image")).mean("t")
    assert float(interaction[0]) == pytest.approx(pair["estimate"], rel=1e-5)
    capsys.readouterr()
    assert launch("interactions", *place, "--components=mid.head") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]  # after what the check on load says
    assert last.startswith("error: unknown component")


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--coordinator=localhost:1"], "needs --processes=N and --process_id=I"),
        (["--coordinator=localhost:1", "--processes=2", "--process_id=2"], "is not below --processes=2"),
    ],
)
def test_half_a_coordinate_is_refused_with_a_way_out(tmp_path, capsys, flags, line):
    assert launch("sweep", "--model=none", f"--workdir={tmp_path}", *flags) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1
