"""What a user mistypes is refused in one line that says what was expected; nothing is guessed."""

import jaxtyping
import numpy as np
import pytest

from mechdiff.api import load, show
from mechdiff.api.images import eval_images
from mechdiff.api.selection import listed
from mechdiff.core.errors import CheckpointError, MechdiffError
from mechdiff.interventions.components import select

HEAD, RES = "mid.attn0.head0", "mid.block0.res"
WRONG = {  # what the message says -> what is called, of a model and images
    "n=1.5: expected how many images, a whole number": lambda model, images: model.sweep(images, n=1.5),
    "n='4'": lambda model, images: model.activations(images, n="4"),
    "n=2.5: expected a whole number": lambda model, images: model.sample(2.5),
    "timesteps='all': expected how many, evenly spread": lambda model, images: model.screen(
        images, timesteps="all"
    ),
    r"timesteps=\[10, 500\]": lambda model, images: model.sweep(images, n=2, timesteps=[10, 500]),
    r"timesteps \[\]": lambda model, images: model.attention(images, n=2, timesteps=[]),
    "seed=None": lambda model, images: model.sweep(images, n=2, seed=None),
    "seed='a'": lambda model, images: model.sample(2, seed="a"),
    "999 timesteps wanted of a schedule with": lambda model, images: model.sample(2, steps=999),
    "unknown precision 'fp8'": lambda model, images: model.sample(2, precision="fp8"),
    "t of type <U1 and shape": lambda model, images: model.predict(images, "a"),
    r"components \[\]": lambda model, images: model.ablate([]),
    r"components \(\)": lambda model, images: model.sweep(images, n=2, components=()),
    "'mid' is no component but has several; 'mid.*' selects all": lambda model, images: model.ablate("mid"),
    "'mid.attn0' is no component but has": lambda model, images: model.ablate(["mid.attn0"]),
    "a table of depth: components need": lambda model, images: model.ablate(model.components()[["depth"]]),
    r"components \[\['mid'\]\]: expected": lambda model, images: model.ablate([["mid"]]),
    r"components \[3\]: expected": lambda model, images: model.sweep(images, n=2, components=[3]),
    "components 3": lambda model, images: model.ablate(3),
    "factor=nan": lambda model, images: model.scale(HEAD, float("nan")),
    "factor=None": lambda model, images: model.scale(HEAD, None),
    "temperature='2'": lambda model, images: model.temperature(HEAD, "2"),
    "direction 'x' for": lambda model, images: model.add(RES, "x"),
    f"direction of 7 channels for {RES}, which has": lambda model, images: model.add(RES, np.ones(7)),
    f"direction of 1 channels for {RES}, which has": lambda model, images: model.add(RES, np.ones(1)),
    "one row of the activation, with all of its": lambda model, images: model.add(HEAD, np.ones(1)).predict(
        images, 5
    ),
    "expected finite numbers": lambda model, images: model.add(RES, np.array([np.nan])),
    "low=0.5": lambda model, images: model.during(0.5, 300),
    "are visited, .*: the intervention would not act": lambda model, images: (
        model.ablate(HEAD).during(1, 2).sample(2, steps=3)
    ),
    "holds no timestep": lambda model, images: model.during(5000, 6000),
    r"the array is masked; .*images.filled\(0\)": lambda model, images: model.sweep(
        np.ma.masked_less(images, 9), n=2
    ),
    "images of different shapes can't be one array": lambda model, images: model.sweep(
        [images[0], images[1][:4]], n=2
    ),
    "n=1 is too small; at least 2": lambda model, images: model.sweep(images, n=1),
    r"seed=4294967296 is out of range": lambda model, images: model.sample(2, seed=2**32),
    "seed=-1 is out of range": lambda model, images: model.sweep(images, n=2, seed=-1),
    "folder=5: expected a path": lambda model, images: model.sweep(images, n=2, folder=5),
    "random_vectors='a': expected how many": lambda model, images: model.screen(images, random_vectors="a"),
    r"factor=1000\d+.*: expected a finite number": lambda model, images: model.scale(HEAD, 10**400),
    r"heads='\[': expected a name or a regular": lambda model, images: model.attention(images, heads="["),
    "heads=None: expected a name or a regular": lambda model, images: model.attention(images, heads=None),
    "sites=None: expected a regular": lambda model, images: model.activations(images, sites=None),
    r"unknown component type \['head'\]": lambda model, images: model.components(["head"]),
    r"component=\['mid'\]: expected the name": lambda model, images: model.add(["mid"], np.ones(4)),
    "no images: an array of shape": lambda model, images: model.predict(images[:0], 5),
    "images of type uint8: expected noisy": lambda model, images: model.predict(images.astype(np.uint8), 5),
    r"2 \+ 2 = 4; lower them": lambda model, images: model.sweep(images[:3], n=2, ablation="mean"),
    "no reference images, over which": lambda model, images: model.sweep(
        eval_images(model, images, 2), ablation="noise"
    ),
    "3 images, but mid.block0.res is patched from 2": lambda model, images: model.patch(
        RES, images[:2]
    ).predict(images[:3], 5),
    r"images to show hold \[-2, 2\]": lambda model, images: show(np.clip(3 * images, -2, 2)),
    "images are written as PNG; call it a.png": lambda model, images: show(images).save("a.jpg"),
    r"\.: a folder stands where a file": lambda model, images: show(images).save("."),
    r"\.\.: a folder stands where a file": lambda model, images: show(images).save(".."),
    "is not images; show samples": lambda model, images: show(model),
}


@pytest.fixture(autouse=True)
def as_a_user():
    """Users have no type checks at run time, which tests have; there a wrong type never gets that far."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("message", WRONG)
def test_values_of_a_wrong_type_or_range_are_refused_in_one_line(model, images, message):
    with pytest.raises(MechdiffError, match=message) as raised:
        WRONG[message](model, images)
    assert "\n" not in str(raised.value)


def test_a_cache_that_can_not_be_written_to_is_named_with_the_way_out(model, images, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MechdiffError, match=r"file/mechdiff: .*set XDG_CACHE_HOME to a folder that can be"):
        model.sweep(images, n=2, timesteps=1)


def test_a_window_of_nothing_may_hold_no_visited_timestep(model):
    np.testing.assert_array_equal(model.during(1, 2).sample(1, steps=2), model.sample(1, steps=2))


def test_components_are_named_by_patterns_and_tables_too(model):
    heads = model.components("head")
    names = sorted(heads["name"])
    ranked = heads.rename(columns={"name": "component"})  # as of `result.top()`
    for what in (".*head.*", [names[0], ".*head.*"], heads, ranked, heads["name"]):
        assert sorted(select(model.denoiser.identity, listed(what))) == names


def test_an_empty_name_is_no_folder():
    with pytest.raises(CheckpointError, match="empty; shipped networks: "):
        load("")


def test_lists_and_single_integers_are_timesteps(model, images):
    one = model.activations(images, n=2, timesteps=5, sites="mid.attn0.head")
    assert one.t.values.tolist() == [5]
    assert model.predict(images[:2], [1, 2]).shape == images[:2].shape
