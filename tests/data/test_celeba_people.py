"""Who is on the images of CelebA: lists of people, and nobody both in training and held out."""

from pathlib import Path

import pytest
from reference.celeba_packs import (
    by_id,
    jpeg,
    load,
    write_pack,
)

from mechdiff.core.config import DataConfig, SweepConfig
from mechdiff.core.errors import DataError
from mechdiff.data import celeba
from mechdiff.data.cache import load_split
from mechdiff.data.images import thumbnail
from mechdiff.study import held_out


def name_people(pack: Path, people: dict[int, int]) -> None:
    lines = (f"{number:06}.jpg {person}\n" for number, person in people.items())
    (pack / celeba.IDENTITY).write_text("".join(lines))


def test_people_travel_with_their_images(tmp_path):
    pack = write_pack(tmp_path / "pack")
    name_people(pack, {number: 100 + number // 3 for number in range(1, 16)})
    source = celeba.open_source(str(pack))
    result = load_split(source, size=16, split="test", limit=0, folder=None)
    assert result.people.tolist() == [100 + int(name[:6]) // 3 for name in result.ids]
    few = SweepConfig(images=2, timesteps=2, nested=True, reference_images=1)
    images = held_out.held_out_images(DataConfig(name="celeba", path=str(pack)), 16, few, tmp_path)
    assert images.people.shape == (2, 2) and set(images.people.ravel()) <= set(result.people)
    names = images.facts["ids"]  # swept timestep by timestep, then for reference
    assert len(names) == 5 and images.people.ravel().tolist() == [
        100 + int(name[:6]) // 3 for name in names[:4]
    ]
    assert images.labels["person"][0] == ("t", "image") and images.first(1).people.shape == (2, 1)
    single = held_out.held_out_images(
        DataConfig(name="celeba", path=str(pack)), 16, SweepConfig(images=3, reference_images=1), tmp_path
    )
    assert single.labels["person"][0] == ("image",) and len(single.people) == 3


def test_without_a_list_or_with_a_partial_one_nobody_is_known(tmp_path, caplog):
    pack, few = write_pack(tmp_path / "pack"), SweepConfig(images=3, reference_images=1)
    config = DataConfig(name="celeba", path=str(pack))
    assert celeba.open_source(str(pack)).people is None
    assert held_out.held_out_images(config, 16, few, tmp_path).labels == {}
    name_people(pack, {12: 7})
    caplog.clear()
    assert sorted(celeba.open_source(str(pack)).people) == [-1] * 14 + [7]
    assert "does not name 14 of 15 images (first: 000001.jpg)" in caplog.text
    assert held_out.held_out_images(config, 16, few, tmp_path).people is None


def test_people_in_training_are_not_held_out(tmp_path, caplog):
    """Splits of one pack that share person 3, and of a second one that shares person 1 with the first."""
    first = write_pack(tmp_path / "a", splits=(0, 0, 0, 1, 2, 2))
    name_people(first, {1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 4})
    alone = celeba.open_source(str(first))
    assert alone.ids.tolist() == [f"{number:06}.jpg" for number in (1, 2, 3, 6)]
    assert alone.splits.tolist() == [0, 0, 0, 2] and alone.people.tolist() == [1, 2, 3, 4]
    assert "2 of 3 held-out images are of people who are in training images too" in caplog.text
    second = write_pack(tmp_path / "b", splits=(2, 2), first=101)
    name_people(second, {101: 1, 102: 9})
    joined = load(f"{first},{second}", "test")
    assert sorted(joined.ids) == ["000006.jpg", "000102.jpg"]
    images = by_id(joined)
    assert images["000102.jpg"] == thumbnail(jpeg(102), 16, "").tobytes()
    caplog.clear()
    with_others = {1: 1, 2: 2, 3: 3, 4: 5, 5: 5, 6: 4}  # as in CelebA: validation and test may share
    name_people(first, with_others)
    whole = celeba.open_source(str(first))
    assert len(whole.ids) == 6 and "left out" not in caplog.text
    assert whole.content == celeba.fingerprint([celeba.read_pack(first).content]) != alone.content


@pytest.mark.parametrize("name", ["list_identity_celeba.csv", "Anno/Identities.txt"])
def test_a_list_of_people_under_another_name_is_named(name, tmp_path, caplog):
    pack = write_pack(tmp_path / "pack")
    (pack / name).parent.mkdir(exist_ok=True)
    (pack / name).write_text("000001.jpg 5\n")
    assert celeba.open_source(str(pack)).people is None
    assert f"{name} is not read" in caplog.text and "call it identity_CelebA.txt (or .csv)" in caplog.text
    name_people(pack, {number: number for number in range(1, 16)})
    caplog.clear()
    assert celeba.open_source(str(pack)).people is not None
    assert not caplog.text


def test_a_foreign_list_of_people_is_refused(tmp_path):
    pack = write_pack(tmp_path / "pack")
    (pack / celeba.IDENTITY).write_text("000001.jpg 5\n000002.jpg five\n")
    with pytest.raises(DataError, match=r"line 2: '000002.jpg five'"):
        celeba.open_source(str(pack))
