"""Networks that are told classes or images: what the gates of these do, and what is refused."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import UNetConfig, decisive
from mechdiff.core.errors import ConfigError
from mechdiff.interventions.build import ablate, set_gate
from mechdiff.models import conditions
from mechdiff.models.unet import apply_unet, components

FORWARD = jax.jit(apply_unet, static_argnums=0)
LABELED = dataclasses.replace(SMALL, classes=3)
JOINED = dataclasses.replace(SMALL, condition_channels=2)
T = np.array([3, 700], np.int32)


def images(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((len(T), 8, 8, channels)).astype(np.float32)


def with_table(params: dict, table: np.ndarray) -> dict:
    return params | {"class": {"table": {"embedding": table}}}


def test_a_class_is_its_row_of_the_table():
    """Permuted rows under permuted labels change nothing; the other class changes the output."""
    params, identity = random_params(LABELED), identity_of(LABELED)
    table = params["class"]["table"]["embedding"]
    run = lambda params, label: FORWARD(LABELED, params, identity, images(3), T, condition=np.array(label))
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(run(params, [2, 3]), run(with_table(params, table[order]), [0, 2]))
    assert np.abs(run(params, [2, 3]) - run(params, [2, 1]))[1].max() > 1e-2


def test_no_class_injected_anywhere_is_a_table_of_zeros():
    params, identity = random_params(LABELED), identity_of(LABELED)
    sites = [part.name for part in components(LABELED) if part.component_type == "class"]
    blocks = {part.site.rsplit(".", 1)[0] for part in components(LABELED) if part.component_type == "time"}
    assert {site.rsplit(".", 1)[0] for site in sites} == blocks
    without = FORWARD(LABELED, params, ablate(identity, sites), images(3), T, condition=np.array([0, 1]))
    zeros = with_table(params, np.zeros_like(params["class"]["table"]["embedding"]))
    np.testing.assert_allclose(
        without, FORWARD(LABELED, zeros, identity, images(3), T, condition=np.array([2, 3])), atol=1e-6
    )
    plain = {name: value for name, value in params.items() if name != "class"}
    np.testing.assert_allclose(without, FORWARD(SMALL, plain, identity_of(SMALL), images(3), T), atol=1e-6)


def test_the_output_is_linear_in_the_gate_only_where_the_network_is():
    """A dose of one half is neither arm; the gate's gradient is that of finite differences."""
    params, identity = random_params(LABELED), identity_of(LABELED)

    @jax.jit
    @jax.value_and_grad
    def loss(dose):
        gate = identity.gate | {"mid.block0.class": jnp.full(identity.gate["mid.block0.class"].shape, dose)}
        changed = dataclasses.replace(identity, gate=gate)
        return jnp.sum(apply_unet(LABELED, params, changed, images(3), T, condition=np.array([0, 1])) ** 2)

    step = 5e-2  # in float32: smaller ones drown in rounding
    difference = (loss(0.5 + step)[0] - loss(0.5 - step)[0]) / (2 * step)
    np.testing.assert_allclose(loss(0.5)[1], difference, rtol=2e-2)
    half = set_gate(identity, "mid.block0.class", 0.5)
    assert np.isfinite(FORWARD(LABELED, params, half, images(3), T, condition=np.array([0, 1]))).all()


def test_the_gate_of_condition_channels_is_a_condition_of_zeros():
    params, identity = random_params(JOINED), identity_of(JOINED)
    run = lambda identity, image: FORWARD(JOINED, params, identity, images(3), T, condition=image)
    shown = images(2, seed=1)
    np.testing.assert_array_equal(
        run(ablate(identity, "conv_in.condition"), shown), run(identity, np.zeros_like(shown))
    )
    assert np.abs(run(identity, shown) - run(identity, np.zeros_like(shown))).max() > 1e-2
    kernel = params["conv_in"]["conv"]["kernel"]
    deaf = params | {"conv_in": {"conv": params["conv_in"]["conv"] | {"kernel": kernel[:, :, :3]}}}
    plain = FORWARD(SMALL, deaf, identity_of(SMALL), images(3), T)
    np.testing.assert_allclose(run(identity, np.zeros_like(shown)), plain, atol=1e-6)


def test_labels_out_of_range_are_never_another_class():
    params, identity = random_params(LABELED), identity_of(LABELED)
    output = FORWARD(LABELED, params, identity, images(3), T, condition=np.array([-1, 3]))
    assert np.isnan(output[0]).all() and np.isfinite(output[1]).all()
    for label in ([-1, 0], [0, 4]):
        with pytest.raises(ConfigError, match="is out of range; 0 to 2, or 3 for none"):
            apply_unet(LABELED, params, identity, images(3), T, condition=np.array(label))


NUMBERS = dataclasses.replace(SMALL, class_embedding="timestep")
VECTORS = dataclasses.replace(SMALL, class_embedding="identity")
BOTH = dataclasses.replace(LABELED, condition_channels=1)
REFUSED = [
    (SMALL, np.array([0]), "takes no condition"),
    (LABELED, None, "is conditioned on one of 3 classes; give one per row as the condition"),
    (JOINED, None, "is conditioned on an image of 2 channels"),
    (LABELED, np.array([0.0, 1.0]), "labels of type float64: expected integers"),
    (LABELED, np.array([[0], [1]]), r"labels of shape \(2, 1\): expected \(rows,\)"),
    (VECTORS, np.array([0, 1]), r"labels of shape \(2,\): expected \(rows, width\)"),
    (JOINED, np.zeros((2, 8, 8, 3)), r"condition images of shape \(2, 8, 8, 3\): expected"),
    (BOTH, np.array([0, 1]), "condition with label: this network takes label and image"),
    (LABELED, {"class": np.array([0])}, "condition with class: this network takes label"),
]


@pytest.mark.parametrize(("config", "condition", "expected"), REFUSED)
def test_a_condition_that_does_not_fit_is_one_line(config, condition, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        conditions.resolve(config, condition)
    assert "\n" not in str(error.value)


def test_numbers_and_vectors_are_embedded():
    """A number as the timestep is, a vector as it is."""
    params = random_params(NUMBERS)

    def run(config, condition):
        return FORWARD(config, params, identity_of(config), images(3), T, condition=condition)

    vectors = np.stack([embedded(params["class"], t) for t in (5.0, 0.5)]).astype(np.float32)
    np.testing.assert_allclose(run(NUMBERS, np.array([5.0, 0.5])), run(VECTORS, vectors), atol=2e-5)


def embedded(params: dict, number: float) -> np.ndarray:
    """The sinusoidal features of a number through two layers, in float64."""
    half = SMALL.widths[0] // 2
    angles = number * np.exp(-np.log(10000.0) * np.arange(half) / (half - SMALL.frequency_shift))
    h = np.concatenate([np.sin(angles), np.cos(angles)])
    h = h @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    return (h / (1 + np.exp(-h))) @ params["dense2"]["kernel"] + params["dense2"]["bias"]


def test_networks_without_conditions_keep_their_digests():
    names = set(decisive(UNetConfig()))
    assert names == {field.name for field in dataclasses.fields(UNetConfig)} - {
        "classes", "null_class", "class_embedding", "condition_channels", "down_resample_blocks",
        "up_resample_blocks", "head_width", "mid_norm_groups", "activation", "middle",
        "mid_output_scale", "time_width"
    }  # fmt: skip
    assert set(decisive(LABELED)) - names == {"classes"}


def test_a_table_and_an_embedding_of_numbers_exclude_each_other():
    with pytest.raises(ConfigError, match=r"unet\.classes=3 is the size of a table"):
        dataclasses.replace(LABELED, class_embedding="identity")


def test_a_list_of_numbers_is_an_array_and_a_list_of_arrays_is_several_parts():
    network, text, mask = object(), np.ones((3, 5)), np.zeros((3, 2))
    np.testing.assert_array_equal(conditions.of_rows(network, [[0.0, 1.0], [2.0, 3.0]], 2), [[0, 1], [2, 3]])
    parts = conditions.of_rows(network, [text, mask], 3)
    assert parts[0] is text and parts[1] is mask


@pytest.mark.parametrize("wrong", [[0, 9], [0, -1], [0.0, 1.5], [[0], [1]], {"label": [0, 1]}])
def test_labels_of_a_function_with_classes_are_checked_as_those_of_a_unet(wrong):
    function = types.SimpleNamespace(fn=types.SimpleNamespace(classes=3, null_label=3))
    np.testing.assert_array_equal(conditions.of_rows(function, [0, 3], 2), [0, 3])
    conditions.check(function, (np.zeros(2), np.zeros((2, 5))))  # of several parts: its own
    with pytest.raises(ConfigError, match=r"0 to 2, or 3 for none|expected integers|\(rows,\)|labels alone"):
        conditions.of_rows(function, wrong, 2)
    without = types.SimpleNamespace(fn=types.SimpleNamespace())
    np.testing.assert_equal(conditions.of_rows(without, wrong, 2), wrong)


@pytest.mark.parametrize("left", [{}, {"mid_attention": False, "mid_output_scale": 2.0}])
def test_a_network_without_a_middle_has_nothing_there_to_set(left):
    with pytest.raises(ConfigError, match=r"unet\.middle=False leaves no middle"):
        UNetConfig(middle=False, **left)
    assert not UNetConfig(middle=False, mid_attention=False).mid_attention
