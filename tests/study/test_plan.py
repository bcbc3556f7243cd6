"""The plan of a study: its networks and their order, and pieces to be carried away."""

import os
import zipfile

import pytest

from mechdiff.core.config import override
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.study import plan


def test_pairs_come_first_seed_by_seed_and_all_have_the_images_of_their_names():
    names = ("synthetic-level2", "celeba", "synthetic", "scrambled", "gaussian")
    planned = plan.networks(preset("study64"), names, 2, "faces")
    assert [network.config.seed for network in planned] == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert planned[2].name == "study64-celeba-seed1" and planned[2].snapshots == (2000, 4000)
    planned = planned[:2] + planned[4:7]
    images = [network.config.data for network in planned]
    assert [data.name for data in images] == ["celeba", "synthetic", "synthetic", "celeba", "gaussian"]
    assert [data.path for data in images] == ["faces", "", "", "faces", ""]
    assert [data.preprocessing.phases for data in images] == ["kept"] * 3 + ["random", "kept"]
    assert (images[1].complexity, images[2].complexity) == (4, 2)
    assert [network.full for network in planned] == [True, True, False, False, False]
    assert all(network.snapshots == () for network in planned[2:])


def test_what_can_not_be_planned_is_one_line():
    with pytest.raises(ConfigError, match="scrambled networks are trained on CelebA"):
        plan.networks(preset("tiny"), ["scrambled"], 1, None)
    with pytest.raises(ConfigError, match="data set 'gaussian' is given twice"):
        plan.networks(preset("tiny"), ["gaussian", "gaussian"], 1, None)
    with pytest.raises(ConfigError, match="synthetic-level2"):
        plan.networks(preset("tiny"), ["synthetic-level3"], 1, None)
    for setting, words in (
        ("sweep.timesteps=51", "51 timesteps wanted of a schedule with 50"),
        ("study.timesteps=51", "51 timesteps wanted of a schedule with 50"),
        ("sweep.images=3", "sweep.images=3 are too few to find and score circuits; give 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan.networks(override(preset("tiny"), [setting]), ["gaussian"], 1, None)
    alone = ["sweep.ablations=zero", "sweep.reference_images=0", "sweep.images=3"]
    for setting, data, words in (
        ("study.controls=true", "synthetic", "around means of reference images"),
        ("study.circuits=mean", "synthetic", "reference_images=0 is too small"),
        ("study.pairs=2", "synthetic", "sweep.images=3 are too few to choose pairs and run them; give 4"),
        ("study.pairs=0", "gaussian", "reference_images=0 is too small"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan.networks(override(preset("tiny"), [*alone, setting]), [data], 1, None)
    # Of nested images, too, circuits take those of one timestep.
    snapshots = override(preset("tiny"), ["sweep.images=3", "sweep.nested=true", "train.keep=5"])
    with pytest.raises(ConfigError, match="too few to find and score circuits"):
        plan.networks(snapshots, ["synthetic"], 1, None)


def test_pieces_hold_every_network_once_and_only_the_last_changes(tmp_path):
    def pack(name, time):
        cells = tmp_path / "examined" / name / "cells"
        cells.mkdir(parents=True)
        (cells / f"{name}.zip").write_bytes(os.urandom(100_000))
        (cells.parent / "manifest.json").write_text("{}")
        os.utime(cells / f"{name}.zip", (time, time))

    for number, name in enumerate("zyx"):
        pack(name, number)
    first = plan.write_pieces(tmp_path / "examined", tmp_path / "pieces", largest=400_000)
    before = first[0].read_bytes()
    pack("a", 10)
    pieces = plan.write_pieces(tmp_path / "examined", tmp_path / "pieces", largest=400_000)
    assert pieces[:1] == first[:1] and before == pieces[0].read_bytes() and len(pieces) == 2
    names = [name for piece in pieces for name in zipfile.ZipFile(piece).namelist()]
    assert sorted(names) == sorted(
        f"{name}/{member}" for name in "axyz" for member in (f"cells/{name}.zip", "manifest.json")
    )
    assert all(piece.stat().st_size < 400_000 for piece in pieces)
