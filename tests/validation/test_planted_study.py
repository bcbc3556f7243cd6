"""What a study adds by default to single ablations, on networks that hide what is responsible from these or
from means: the report names it."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import effects
from mechdiff.analysis.variation import variation
from mechdiff.core.config import StudyConfig, SweepConfig
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.report import pairs, ranking
from mechdiff.study import circuit_results
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examine import DenoiserAndImages
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.validation import planted

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def sentence(tiny):
    """Name of a planted network -> its planted components, and what a study's report says of its pairs."""

    def of(name):
        plant = planted.make(name, 1, images=8)
        config = dataclasses.replace(tiny, study=StudyConfig(pairs=5))
        examined = DenoiserAndImages(
            plant.denoiser, config, EvalImages(plant.images, plant.others, "planted"), xr.Dataset()
        )
        table = circuit_results.pairs(examined, config, [int(t) for t in plant.timesteps], KEY)
        return plant, str(pairs.sentence(table))

    return of


def test_a_study_names_three_heads_of_which_any_one_may_go_and_no_two(sentence):
    plant, text = sentence("two_of_three")
    named = text[: text.index("any one may go and no two")].split("<code>")[1:]
    assert {name.partition("</code>")[0] for name in named} == set(plant.signs)


def test_a_study_names_a_backup_that_repairs_a_part(sentence):
    plant, text = sentence("partial_backup")
    first, second, _ = plant.pairs[0]
    after = text.partition(f"<code>{second}</code> makes up for ")[2]
    assert after.partition(" what ablating ")[2].startswith(f"<code>{first}</code>")
    estimate, low, high = (float(number) for number in re.findall(r"[\d.]+", after.partition(" %")[0]))
    assert 65 < low < estimate < high < 90  # half of an error: three quarters of its square


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """The planted network of a component that one image in eight needs, and its sweep by zero ablation."""
    plant = planted.make("rare", 1, images=8)
    eval_set = EvalSet(plant.images, plant.timesteps, KEY)
    folder = tmp_path_factory.mktemp("rare")
    config = SweepConfig(ablations=("zero",), image_block=8)
    return plant, ablation_sweep(plant.denoiser, eval_set, folder, config=config)


def test_what_few_images_need_comes_first_by_its_spread_over_images(rare):
    plant, sweep = rare
    table = variation(sweep, "zero")
    assert set(table.component[[table.over_images.idxmax()]]) == set(plant.signs)
    damage = effects.measure(sweep, "zero", repeats=50)
    place = damage.components.index(next(iter(plant.signs)))
    assert np.argsort(-np.abs(damage.pooled.estimate)).tolist().index(place) > 0  # not first by its mean
    assert place in ranking.chosen(damage)
