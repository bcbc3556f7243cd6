"""A study, from end to end, of networks that hide what is responsible from single ablations or from means."""

import dataclasses

import pytest

from experiments.examples import planted_networks
from mechdiff import report
from mechdiff.core.config import StudyConfig, SweepConfig
from mechdiff.storage import files
from mechdiff.study import controls, examine, inputs, records
from mechdiff.validation import planted

NAMES = ("two_of_three", "rare")


@pytest.fixture(scope="module")
def studied(tiny, tmp_path_factory):
    """The page and the models of a study of `NAMES` with the methods that presets ask for, in small."""
    folder = tmp_path_factory.mktemp("study")
    sweep = SweepConfig(timesteps=3, images=8, reference_images=8, image_block=8)
    config = dataclasses.replace(
        tiny, name="planted", sweep=sweep, study=StudyConfig(images=8, timesteps=2, pairs=8)
    )
    choose = inputs.chooser(config, None, folder / "cache")
    for name in NAMES:
        model = f"{planted_networks.__name__}:{name}"
        where = folder / "subjects" / name
        controls.run_study(examine.examine(name, model, choose, config.sweep, 0, where), config, where)
    files.write_json(folder / "manifest.json", {})
    page = report.build(folder).read_text()
    return page, {model.name: model for model in records.read(folder)[1]}


def planted_in(name):
    return set(planted.make(name, images=planted_networks.IMAGES).signs)


def test_three_heads_of_which_any_one_may_go_are_named_as_a_group(studied):
    page, models = studied
    alone = models["two_of_three"].damages["zero"]
    members = [name in planted_in("two_of_three") for name in alone.components]
    assert alone.idle[members].all()  # no single ablation shows anything of them
    start = page.index("any one may go and no two")
    assert planted_in("two_of_three") <= set(
        page[start - 300 : start].replace("<code>", "</code>").split("</code>")
    )


def test_a_head_that_few_images_need_is_named_for_its_spread_over_images(studied):
    page, models = studied
    (name,) = planted_in("rare")
    alone = models["rare"].lead
    assert abs(alone.pooled.estimate[alone.components.index(name)]) < 5
    assert f"<code>{name}</code> most over images" in page
