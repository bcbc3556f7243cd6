"""Batches as a function of the step, conversions, and `load` for synthetic pictures."""

import pkgutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff import data
from mechdiff.core.config import DataConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data.dataset import Dataset, batch_at, batch_indices, fingerprint, to_bytes, to_float


def numbered(count: int, width: int = 4) -> Dataset:
    """Picture i has value i in its first column and 0 elsewhere, so that a mirrored one is recognized."""
    images = np.zeros((count, 4, width, 3), np.uint8)
    images[:, :, 0] = np.arange(count, dtype=np.uint8)[:, None, None]
    return Dataset(name="numbered", images=images, digest="", ids=np.arange(count))


@settings(max_examples=50)
@given(n=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 9), epochs=st.integers(1, 3))
def test_every_epoch_holds_every_picture_once(n, batch, seed, epochs):
    steps = -(-n * epochs // batch)
    seen = np.concatenate([batch_indices(n, seed, step, batch) for step in range(steps)])[: n * epochs]
    np.testing.assert_array_equal(np.sort(seen.reshape(epochs, n)), np.tile(np.arange(n), (epochs, 1)))


@settings(max_examples=30)
@given(n=st.integers(2, 30), batch=st.integers(1, 40), step=st.integers(0, 10**9))
def test_an_index_is_the_epochs_permutation_at_its_position(n, batch, step):
    expected = []
    for position in range(step * batch, (step + 1) * batch):
        expected.append(np.random.default_rng([5, position // n]).permutation(n)[position % n])
    np.testing.assert_array_equal(batch_indices(n, 5, step, batch), expected)


def test_steps_may_be_asked_for_in_any_order():
    forward = [batch_indices(10, 0, step, 3) for step in range(20)]
    for step in reversed(range(20)):
        np.testing.assert_array_equal(batch_indices(10, 0, step, 3), forward[step])


def test_epochs_and_seeds_have_their_own_order():
    orders = {tuple(batch_indices(20, seed, epoch, 20)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_caller_cannot_spoil_the_order_of_others():
    first = batch_indices(7, 0, 0, 7)
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_indices(7, 0, 0, 7), expected)


def test_no_pictures_is_an_error():
    with pytest.raises(ValueError, match="n=0"):
        batch_indices(0, 0, 0, 1)


def test_batches_are_the_indexed_pictures_and_leave_the_dataset_alone():
    dataset = numbered(50)
    before = dataset.images.copy()
    batch = batch_at(dataset, 3, 4, 8)
    np.testing.assert_array_equal(batch[:, 0, 0, 0], batch_indices(50, 3, 4, 8))
    batch_at(dataset, 3, 4, 8, flip=True)[:] = 0
    np.testing.assert_array_equal(dataset.images, before)


def test_flips_mirror_about_half_of_the_pictures_and_depend_on_seed_and_step_only():
    dataset = numbered(200)
    plain, flipped = batch_at(dataset, 0, 0, 2000), batch_at(dataset, 0, 0, 2000, flip=True)
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    unchanged = (flipped == plain).all(axis=(1, 2, 3))
    assert (mirrored | unchanged).all()
    some = plain[:, 0, 0, 0] > 0  # picture 0 is its own mirror image
    assert abs(mirrored[some].mean() - 0.5) < 5 * 0.5 / np.sqrt(some.sum())
    np.testing.assert_array_equal(batch_at(dataset, 0, 0, 2000, flip=True), flipped)
    other = batch_at(dataset, 0, 1, 2000, flip=True)
    assert ((other[:, 0, -1, 0] > 0) != (flipped[:, 0, -1, 0] > 0)).any()


@pytest.mark.parametrize("xp", [np, jnp])
def test_bytes_survive_the_round_trip_and_fill_the_range(xp):
    pixels = xp.arange(256, dtype=xp.uint8).reshape(1, 16, 16, 1)
    floats = to_float(pixels)
    assert floats.dtype == np.float32 and isinstance(floats, type(pixels))
    assert (float(floats.min()), float(floats.max())) == (-1.0, 1.0)
    np.testing.assert_allclose(np.asarray(floats).ravel(), np.arange(256) / 127.5 - 1, atol=1e-7)
    back = to_bytes(floats)
    assert back.dtype == np.uint8 and isinstance(back, type(pixels))
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("xp", [np, jnp])
def test_to_bytes_rounds_and_clips(xp):
    values = xp.asarray([-7.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 1e9], xp.float32)
    np.testing.assert_array_equal(to_bytes(values), [0, 0, 0, 1, 255, 255])


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert (
        fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    )


# ---- load: synthetic pictures

CONFIG = DataConfig(n_train=12, n_test=5, complexity=0)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return {split: data.load(CONFIG, 8, split, 0, folder) for split in data.SPLITS}, folder


def test_synthetic_splits_are_disjoint_ranges_of_the_generator(splits):
    from mechdiff.data.synthetic import render_bytes

    loaded, _ = splits
    assert {split: len(dataset) for split, dataset in loaded.items()} == {
        "train": 12,
        "validation": 5,
        "test": 5,
    }
    assert len(set(np.concatenate([dataset.ids for dataset in loaded.values()]))) == 22
    for dataset in loaded.values():
        assert dataset.images.dtype == np.uint8 and dataset.images.shape[1:] == (8, 8, 3)
        expected = render_bytes(0, int(dataset.ids[0]), len(dataset), 8, 0)
        np.testing.assert_array_equal(dataset.images, expected)


def test_synthetic_pictures_are_rendered_once(splits, monkeypatch):
    loaded, folder = splits
    monkeypatch.setattr("mechdiff.data.synthetic.render_bytes", None)  # a call would raise TypeError
    again = data.load(CONFIG, 8, "train", 0, folder)
    np.testing.assert_array_equal(again.images, loaded["train"].images)
    assert again.digest == loaded["train"].digest
    with pytest.raises(TypeError):
        data.load(CONFIG, 8, "train", 1, folder)  # another seed is another cache


def test_synthetic_digests_tell_contents_apart(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mechdiff.data.synthetic.render_bytes",
        lambda *args: np.zeros((args[2], args[3], args[3], 3), np.uint8),
    )
    loaded, _ = splits
    digests = {dataset.digest for dataset in loaded.values()}
    for size, seed, complexity, count in [(16, 0, 0, 12), (8, 1, 0, 12), (8, 0, 1, 12), (8, 0, 0, 11)]:
        config = DataConfig(n_train=count, complexity=complexity)
        digests.add(data.load(config, size, "train", seed, None).digest)
    assert len(digests) == 7


def test_a_change_of_any_file_of_the_generator_renders_again(splits, monkeypatch):
    modules = [module.name for module in pkgutil.iter_modules(data.__path__, "mechdiff.data.")]
    generator = {name.removeprefix("mechdiff.data.") for name in modules if data._generates(name)}
    assert generator == {"synthetic", "factors", "drawing"}
    assert data._generates("mechdiff.data.drawing.canvas")

    def hash_where(changed: str) -> str:
        monkeypatch.setattr(
            Path, "read_text", lambda path, encoding: f"x = {path.name == changed}  # {changed}"
        )
        return data._generator_hash.__wrapped__()

    assert len({hash_where(name) for name in ("synthetic.py", "factors.py", "canvas.py", "none.py")}) == 4
    assert hash_where("none.py") == hash_where("no-comment.py")
    documented = '"""What it says."""\ndef f():\n    """What it says."""\n    return 1'
    assert (
        data._code(documented) == data._code("def f():\n    return 1") != data._code("def f():\n    return 2")
    )


def test_config_cache_wins_over_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mechdiff.data.synthetic.render_bytes", lambda *args: np.zeros((args[2], 8, 8, 3), np.uint8)
    )
    config = DataConfig(n_train=3, cache=str(tmp_path / "chosen"))
    data.load(config, 8, "train", 0, tmp_path / "run")
    assert (tmp_path / "chosen").is_dir() and not (tmp_path / "run").exists()


def test_what_cannot_be_loaded_is_named_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="unknown split 'trian'; closest: train"):
        data.load(CONFIG, 8, "trian", 0, None)
    with pytest.raises(ConfigError, match=r"data\.n_train=2000000 .* holds 1 to 1000000"):
        data.load(DataConfig(n_train=2_000_000), 8, "train", 0, None)
    with pytest.raises(DataError, match="names no folder"):
        data.load(DataConfig(name="celeba"), 8, "train", 0, None)
