"""A model trained on a folder of images that are no faces, and opened to be examined on that folder."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments import _opening
from mechdiff.core.config import override
from mechdiff.core.errors import ConfigError
from mechdiff.data.collection import open_collection
from mechdiff.models import load
from mechdiff.training import loop

SHAPES = 60


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Drawings of rectangles and ellipses, 12x10."""
    place = tmp_path_factory.mktemp("images") / "shapes"
    place.mkdir()
    for number in range(SHAPES):
        rng = np.random.default_rng(number)
        image = Image.new("RGB", (12, 10), tuple(rng.integers(150, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        x, y, width, height = rng.integers(1, 5, 4).tolist()
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape((x, y, x + width + 1, y + height + 1), fill=tuple(rng.integers(0, 120, 3).tolist()))
        image.save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def config(tiny, shapes):
    data = ["data.name=folder", f"data.path={shapes}", "data.preprocessing.crop=squash", "data.held_out=0.5"]
    few = ["sweep.images=4", "sweep.reference_images=4", "sweep.timesteps=2"]
    return override(dataclasses.replace(tiny, name="shapes"), [*data, *few, "train.keep=10,20"])


def test_a_model_of_a_folder_is_never_examined_on_what_it_was_trained_on(config, shapes, tmp_path, capsys):
    run = tmp_path / "shapes"
    loop.train(config, run)
    digests = open_collection(shapes).digests
    opened = _opening.opened(
        override(config, ["data.preprocessing.crop=center"]), run, f"{run}@10", None, str(shapes)
    )
    assert opened.denoiser.name == "shapes@10"
    record = load.load_trained(run)[3]
    seen = set(record["training_images"])
    assert seen < {digest[:16] for digest in digests} and opened.images.facts["held_out"]
    assert "squashed to a square" in opened.images.label and "none was trained on" in opened.images.label
    assert "of that in its record" in capsys.readouterr().err
    last, end = (load.load_trained(run / name)[1] for name in ("snapshots/20", "model"))
    jax.tree.map(np.testing.assert_array_equal, last, end)


def test_training_refuses_channels_that_the_network_does_not_take(config, tmp_path):
    gray = override(config, ["data.preprocessing.channels=gray"])
    with pytest.raises(ConfigError, match=r"have 1 channel\(s\), but unet\.in_channels=3"):
        loop.train(gray, tmp_path)
