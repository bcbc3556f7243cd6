"""What a study adds to an examined network: made once, readable, and what it claims to be."""

import dataclasses

import numpy as np
import pytest

from mechdiff.analysis import complexity
from mechdiff.circuits import scorecards
from mechdiff.core.config import StudyConfig, SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.models import load
from mechdiff.storage import labelled
from mechdiff.study import choosing, circuit_results, controls, examine, further_results, role_results


@pytest.fixture(scope="module")
def deepened(trained, tmp_path_factory):
    """A tiny model examined and studied; the config, and the folder of results."""
    role_results.PROBED, role_results.BLOCK = 12, 4  # drawing faces is slow where programs are not optimized
    model, folder = trained[0], tmp_path_factory.mktemp("subject")
    _, config, _ = load.load_denoiser(model)
    sweep = SweepConfig(
        ablations=("mean",), timesteps=3, images=8, nested=True, reference_images=4, image_block=4
    )
    study = StudyConfig(
        controls=True, circuits=("mean",), role_sets=20, random_sets=3, images=4, timesteps=2, pairs=3
    )
    config = dataclasses.replace(config, sweep=sweep, study=study)
    choose = choosing.ImageChoice(config, None, folder / "cache")
    examined = examine.examine("tiny", model, choose, config.sweep, 0, folder)
    further_results.run_study(examined, config, folder)
    return examined, config, folder


def test_everything_asked_for_is_there(deepened):
    _, config, folder = deepened
    roles, control = labelled.read(folder / "roles.zarr"), labelled.read(folder / "control.zarr")
    assert all("head" in str(name) for name in roles["component"].values)
    assert np.isfinite(roles["adjusted"].values).all() and roles.sizes["image"] == 4
    swept = labelled.read(folder / "sweep.zarr")
    assert control.sizes["t"] == swept.sizes["t"] == 3 and control.sizes["image"] == 4
    assert (control["clean_loss"].values != swept["clean_loss"].values[:, :4]).all()  # another network
    assert swept.attrs["images_total"] == 8 * 3 and control.attrs["images_total"] == 4 * 3
    activity = labelled.read(folder / "activity.zarr")
    assert (activity["value"].sel(measure="participation").values >= 1 - 1e-6).all()
    assert activity.sizes["t"] == config.study.timesteps


def test_random_sets_are_those_of_each_components_class(deepened):
    result = labelled.read(deepened[2] / "random_sets.zarr")
    assert result["relative_increase"].dims == ("ablation", "component", "set") and result.sizes["set"] == 3
    assert (
        np.isfinite(result["relative_increase"].values).all()
        and np.ptp(result["relative_increase"].values) > 0
    )
    rows = result["relative_increase"].isel(ablation=0).groupby("class")
    assert all(np.ptp(own.values, axis=0).max() == 0 for _, own in rows)


def test_pairs_of_the_likeliest_components_are_run(deepened):
    table = labelled.read(deepened[2] / "pairs.zarr")
    assert table.sizes["pair"] == 3 and table.sizes["image"] == 4 and table.sizes["t"] == 2
    joint = (table.without_both.mean("image") / table.clean_loss.mean("image") - 1).mean("t")
    np.testing.assert_allclose(table.joint, 100 * joint, rtol=1e-4)


def test_circuits_carry_their_sizes_and_can_be_measured(deepened):
    runs = labelled.read(deepened[2] / "circuit_mean.zarr")
    card = scorecards.measure(runs)
    sizes = np.atleast_1d(runs.attrs["sizes"])
    assert len(sizes) == len(complexity.TAUS) and len(card.members) == sizes[complexity.TAUS.index(0.9)]
    assert set(card.members) <= set(runs["component"].values)


def test_what_is_there_is_not_made_again(deepened, monkeypatch):
    examined, config, folder = deepened
    makers = {
        controls: ("activity", "control", "control_attention", "random_sets"),
        circuit_results: ("circuit", "pairs"),
        role_results: ("head_roles",),
    }

    def fail(*args, **kwargs):
        pytest.fail("a result was made again")

    for module, names in makers.items():
        for name in names:
            monkeypatch.setattr(module, name, fail)
    further_results.run_study(examined, config, folder)


def test_results_are_made_anew_only_for_settings_that_decide_them(deepened, monkeypatch):
    examined, config, _ = deepened

    names = ("activity", "control", "circuit_mean", "random_sets", "roles", "pairs")

    def differ(*first, second):
        return {
            name
            for name in names
            if further_results._key(*first, name) != further_results._key(*second, name)
        }

    def changed(config, **settings):
        return differ(examined, config, second=(examined, dataclasses.replace(config, **settings)))

    def of_images(**about):
        images = dataclasses.replace(examined.images, **about)
        return differ(examined, config, second=(dataclasses.replace(examined, images=images), config))

    def study(**settings):
        return changed(config, study=dataclasses.replace(config.study, **settings))

    assert len(changed(config, seed=config.seed + 1)) == len(study(images=8)) == 6
    assert study(models=("one more",)) == set()
    count, references = (len(each) for each in (examined.images.scored, examined.images.reference))
    labels, people = np.zeros(count, np.int32), np.arange(count)
    assert (
        len(of_images(condition=labels))
        == len(of_images(reference_condition=np.zeros(references, np.int32)))
        == 6
    )
    assert of_images(people=people) == {"circuit_mean", "pairs"}
    assert study(role_sets=config.study.role_sets + 1) == {"roles"}
    assert study(pairs=config.study.pairs + 1) == {"pairs"}
    assert study(random_sets=config.study.random_sets + 1) == {"random_sets"}
    # Nobody may be in both halves, as people could be in results from before.
    config = dataclasses.replace(config, study=dataclasses.replace(config.study, images=8))
    images = dataclasses.replace(examined.images, people=np.tile([0, 1, 0, 2, 3, 1, 2, 3], (3, 1)))
    examined = dataclasses.replace(examined, images=images)
    apart = {name: further_results._key(examined, config, name) for name in names}
    monkeypatch.setattr(type(images), "halves", lambda self: (np.arange(4), np.arange(4, 8)))
    assert {name for name in names if further_results._key(examined, config, name) != apart[name]} == {
        "circuit_mean"
    }


@pytest.mark.parametrize(
    "wanted", [{"circuits": ("man",)}, {"role_sets": -1}, {"images": 2}, {"timesteps": 0}]
)
def test_impossible_studies_are_refused(wanted):
    with pytest.raises(ConfigError, match=r"study|man"):
        StudyConfig(**wanted)
