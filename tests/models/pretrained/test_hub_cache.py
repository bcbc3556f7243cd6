"""A repository that the hub's own tools keep is found by its name; nothing else is taken for one."""

import pytest
from reference.networks import SMALL, random_params

import mechdiff as md
from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import CheckpointError
from mechdiff.models import pretrained
from mechdiff.models.pretrained import hub_cache

COMMIT = "2c21e2d9f0b4b3e7a4a5a4f5b0c1d2e3f4a5b6c7"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The hub's cache with one network, whose files are links as they are there."""
    folder = tmp_path_factory.mktemp("hub")
    written = pretrained.write_diffusers(folder / "written", SMALL, DiffusionConfig(), random_params(SMALL))
    kept = folder / "models--someone--faces-32"
    snapshot, blobs = kept / "snapshots" / COMMIT, kept / "blobs"
    for place in (snapshot, blobs, kept / "refs"):
        place.mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(path for path in written.rglob("*") if path.is_file()):
        path.rename(blobs / str(number))
        place = snapshot / path.relative_to(written)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(blobs / str(number))
    return folder


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))


def test_a_downloaded_repository_is_a_model_by_its_name(cache):
    model = md.load("someone/faces-32")
    assert model.name == "faces-32" and len(model.components()) == 16
    assert model.origin == str(cache / "models--someone--faces-32" / "snapshots" / COMMIT)


def test_the_folder_is_the_one_that_the_hubs_own_library_names(cache):
    hub = pytest.importorskip("huggingface_hub", reason="needs the test extra")
    folder = hub.snapshot_download("someone/faces-32", local_files_only=True, cache_dir=cache)
    assert str(hub_cache.snapshot("someone/faces-32")) == folder


def test_the_folder_of_the_cache_follows_the_hubs_own_variables(cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in (("HF_HOME", cache.parent / "home"), ("XDG_CACHE_HOME", cache.parent)):
        monkeypatch.setenv(name, str(value))
        assert hub_cache.snapshot("someone/faces-32") is None
    (cache.parent / "home").mkdir()
    (cache.parent / "home" / "hub").symlink_to(cache)
    assert hub_cache.snapshot("someone/faces-32").name == COMMIT


def test_what_was_not_downloaded_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no folder someone/other, .*`hf download someone/other`"):
        md.load("someone/other")
    with pytest.raises(CheckpointError) as error:
        md.load("nothing-of-the-kind")
    assert "hf download" not in str(error.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "faces-32").mkdir(parents=True)
    assert hub_cache.snapshot("someone/faces-32") is None  # a folder of that name goes first
