"""Effects per class against means by hand; a null and a planted difference."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis.class_effects import CLASS, class_effects
from mechdiff.core.errors import ConfigError

T, COUNT = 3, 40


def swept(effect: np.ndarray, labels: np.ndarray, seed: int = 0) -> xr.Dataset:
    """A sweep of two components, whose losses rise by `effect` (component, t, image) and by chance."""
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0.5, 1.5, (T, COUNT))
    loss = clean * (1 + effect + 0.02 * rng.standard_normal((2, T, COUNT)))
    dims = ("t", "image")[-labels.ndim :]
    return xr.Dataset(
        {
            "loss": (("ablation", "component", "t", "image"), loss[None]),
            "clean_loss": (("t", "image"), clean),
        },
        coords={"ablation": ["zero"], "component": ["a", "b"], "t": np.arange(T), CLASS: (dims, labels)},
        attrs={"denoiser": "planted"},
    )


NESTED = np.random.default_rng(1).integers(0, 2, (T, COUNT))


@pytest.mark.parametrize("labels", [np.arange(COUNT) % 2, NESTED], ids=["crossed", "nested"])
def test_the_estimate_is_the_pooled_increase_of_the_classs_own_images(labels):
    effect = np.stack([0.5 * (np.broadcast_to(labels, (T, COUNT)) == 1), np.full((T, COUNT), 0.2)])
    sweep = swept(effect, labels)
    result = class_effects(sweep, "zero", repeats=200)
    member = np.broadcast_to(labels, (T, COUNT))
    for label in (0, 1):
        clean = [sweep["clean_loss"].values[t][member[t] == label].mean() for t in range(T)]
        loss = np.array([sweep["loss"].values[0, :, t][:, member[t] == label].mean(1) for t in range(T)])
        by_hand = 100 * (loss / np.array(clean)[:, None] - 1).mean(0)
        np.testing.assert_allclose(result["estimate"].sel({CLASS: label}), by_hand)
    planted = result.sel(component="a")
    assert planted["low"].sel({CLASS: 1}) > 40 and abs(planted["estimate"].sel({CLASS: 0})) < 2
    alike = result.sel(component="b")  # the null: no difference between the classes
    assert alike["low"].max() < 20 < alike["high"].min()
    assert result["images"].values.tolist() == [(labels == 0).sum(), (labels == 1).sum()]
    reduced = sweep.assign(precision_error=(("ablation", "component"), np.array([[3.0, 0.0]])))
    wider = class_effects(reduced, "zero", repeats=200)["high"] - result["high"]
    np.testing.assert_allclose(wider.mean(CLASS), [3, 0], atol=1e-9)


def test_a_sweep_without_classes_or_with_too_few_images_of_one_is_refused():
    labels = (np.arange(COUNT) < 2).astype(int)
    with pytest.raises(ConfigError, match="class 1 has 2 images at some timestep; at least 5"):
        class_effects(swept(np.zeros((2, T, COUNT)), labels), "zero")
    with pytest.raises(ConfigError, match="no coordinate 'class_label'"):
        class_effects(swept(np.zeros((2, T, COUNT)), labels).drop_vars(CLASS), "zero")
    labels, few = (
        np.arange(COUNT) % 2,
        np.arange(COUNT) // 20,
    )  # of the 20 images of class 1 half show person 0
    sweep = swept(np.zeros((2, T, COUNT)), np.sort(labels)).assign_coords(person=("image", few))
    with pytest.raises(ConfigError, match="class 0 has 1 people, as they count, at some timestep"):
        class_effects(sweep, "zero")


def test_intervals_of_a_small_class_are_widened_for_its_own_images():
    """8 of 80 images, skewed: widened for 80 they covered .90."""
    rng, covered, labels = np.random.default_rng(2), [], np.repeat([0, 1], [8, COUNT - 8])
    for _ in range(40):
        sweep = swept(0.3 * np.exp(0.5 * rng.normal(size=(2, T, COUNT)) - 0.125), labels, rng.integers(2**31))
        result = class_effects(sweep, "zero", labels=[0], repeats=500)
        covered.append((result["low"] <= 30) & (result["high"] >= 30))
    assert np.mean(covered) > 0.91
