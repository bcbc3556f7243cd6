"""Packed networks of several examinations in one folder: verdicts and the report need nothing else."""

import shutil

import pandas as pd
import pytest
from reference.results import IMAGES, fabricate, unrendered

from mechdiff import report
from mechdiff.core.config import override, to_dict
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.core.presets import preset
from mechdiff.stats.clusters import PERSON
from mechdiff.storage import files, labelled, packed
from mechdiff.study import claims, collecting, packing, results_folder


def examined(folder, name, seed, *changes, ids=("a", "b", "c", "d", "e", "f", "g"), settings=()):
    """A results folder as `experiments.examine` leaves it, of made-up numbers; only packed files stay."""
    fabricate(folder, name, "held-out images", seed, *changes)
    subject = folder / "subjects" / name
    about = files.read_json(subject / "subject.json")
    about["images"] = {"name": "faces", "sha256": "0123456789abcdef", "count": len(ids), "ids": list(ids)}
    files.write_json(subject / "subject.json", about)
    sweep = labelled.read(subject / "sweep.zarr")
    people = {PERSON: (("image",), [7, 7, 8, 8, 9])}
    labelled.replace(subject / "sweep.zarr", sweep.assign_coords(people))
    packing.pack(subject, folder / packing.CELLS / f"{name}.zip", samples=True)
    shutil.rmtree(folder / "subjects")
    config = to_dict(override(preset("tiny"), ("data.cache=/secret/cache", *settings)))
    command = ["examine", f"--model=/secret/runs/{name}", "--celeba=/secret/full,/secret/half/"]
    manifest = {"config": config, "models": [name], "command": command, "code": "c0de"}
    files.write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("examined")
    celeba = ("data.name=celeba", "data.path=x")
    examined(home / "a", "held-celeba-0", 0, *celeba)
    examined(home / "b", "held-celeba-1", 1, *celeba, "seed=1")
    examined(home / "c", "held-synthetic-0", 2, settings=("sweep.images=3",))
    return home


@pytest.fixture
def examinations(made, tmp_path):
    return shutil.copytree(made, tmp_path / "examined")


def test_verdicts_and_report_come_from_the_collected_files_alone(examinations, tmp_path, monkeypatch):
    unrendered(monkeypatch)
    folder, names = tmp_path / "study", ["held-celeba-0", "held-synthetic-0"]
    assert collecting.collect([examinations / "a", examinations / "c"], folder) == names
    shutil.rmtree(examinations)
    manifest, models = results_folder.read(folder)
    assert [model.name for model in models] == names == manifest["models"]
    verdicts = {claim.verdict for claim in claims.evaluate([model.results for model in models])}
    assert verdicts <= {"undecided", "not testable here"}  # one network of each decides nothing
    page = report.build(folder).read_text("utf-8")
    assert all(name in page for name in names) and "not testable here" in page


def test_settings_of_most_networks_are_shared_and_others_are_said(examinations, tmp_path):
    collecting.collect([examinations], tmp_path / "study")
    manifest = files.read_json(tmp_path / "study" / "manifest.json")
    networks = manifest["networks"]
    assert networks["held-celeba-0"]["command"] == ["examine", "--model=held-celeba-0", "--celeba=full,half/"]
    assert networks["held-celeba-0"]["other_settings"] == {}
    assert networks["held-synthetic-0"]["other_settings"] == {"sweep.images": 3}
    assert manifest["config"]["sweep"]["images"] == preset("tiny").sweep.images


def test_folders_of_the_machine_are_left_out(examinations, tmp_path):
    path = examinations / "a" / "cells" / "held-celeba-0.zip"
    about = packed.read(path).about
    about["config"]["data"]["path"] = "/secret/celeba"  # as files were packed before
    path.write_bytes(packed.with_about(path, about))
    collecting.collect([examinations], tmp_path / "study")
    kept = packed.read(tmp_path / "study" / "cells" / path.name)
    assert kept.about["config"]["data"]["path"] == "" and set(kept.results) == set(packed.read(path).results)
    shipped = b"".join(file.read_bytes() for file in (tmp_path / "study").rglob("*") if file.is_file())
    assert b"secret" not in shipped


def test_images_and_people_are_listed_once(examinations, tmp_path):
    collecting.collect([examinations], tmp_path / "study")
    images = pd.read_csv(tmp_path / "study" / "images.csv", dtype={"person": "Int64"})
    assert len(images) == 7 and list(images["id"]) == list("abcdefg")
    assert list(images["use"]) == ["scored"] * IMAGES + ["reference"] * 2
    assert list(images["person"].dropna()) == [7, 7, 8, 8, 9] and images["person"].isna().sum() == 2


def test_networks_are_added_to_those_collected_before(examinations, tmp_path):
    folder = tmp_path / "study"
    collecting.collect([examinations / "c"], folder)
    assert files.read_json(folder / "manifest.json")["config"]["sweep"]["images"] == 3
    names = collecting.collect([examinations / "a", examinations / "b"], folder)
    assert names == ["held-celeba-0", "held-celeba-1", "held-synthetic-0"]
    made = files.read_json(folder / "manifest.json")["networks"]
    assert made["held-synthetic-0"]["other_settings"] == {"sweep.images": 3}
    again = [path.read_bytes() for path in sorted((folder / packing.CELLS).iterdir())]
    assert collecting.collect([examinations], folder) == names
    assert again == [path.read_bytes() for path in sorted((folder / packing.CELLS).iterdir())]


def test_what_can_not_be_collected_is_one_line(examinations, tmp_path):
    with pytest.raises(ConfigError, match=r"no cells/\*\.zip in .*nowhere"):
        collecting.collect([tmp_path / "nowhere"], tmp_path / "study")
    shutil.copytree(examinations / "b", examinations / "d")
    (examinations / "d" / "cells" / "held-celeba-1.zip").write_bytes(b"other")
    with pytest.raises(ConfigError, match="different networks of one name"):
        collecting.collect([examinations], tmp_path / "study")
    shutil.rmtree(examinations / "d")
    (examinations / "c" / "cells" / "held-synthetic-0.zip").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"held-synthetic-0\.zip can't be read"):
        collecting.collect([examinations], tmp_path / "study")


def test_a_network_collected_before_is_not_replaced_by_another_of_its_name(examinations, tmp_path):
    collecting.collect([examinations / "a"], tmp_path / "study")
    kept = tmp_path / "study" / "cells" / "held-celeba-0.zip"
    before, other = kept.read_bytes(), examinations / "b" / "cells" / "held-celeba-1.zip"
    other.rename(other.with_name("held-celeba-0.zip"))
    with pytest.raises(ConfigError, match="different networks of one name; rename one, or remove"):
        collecting.collect([examinations / "b", examinations / "c"], tmp_path / "study")
    assert kept.read_bytes() == before and len(list(kept.parent.iterdir())) == 1


def test_another_kind_of_results_is_not_overwritten(examinations, tmp_path):
    files.ensure_writable(tmp_path / "study")
    files.write_json(tmp_path / "study" / "manifest.json", {"config": {}})
    with pytest.raises(ConfigError, match="another kind of results"):
        collecting.collect([examinations], tmp_path / "study")
    assert files.read_json(tmp_path / "study" / "manifest.json") == {"config": {}}
