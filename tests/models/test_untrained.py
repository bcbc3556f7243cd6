"""Fresh networks: drawn as their author's function draws, and refused where it is not known."""

import jax
import numpy as np
import pytest
from reference import user_network

from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained.edm import init as edm_init
from mechdiff.models.pretrained.lucidrains import init as lucidrains_init
from mechdiff.models.untrained import untrained


def test_parameters_come_from_the_authors_function_and_zero_kernels_are_drawn():
    trained, _ = user_network.with_init()
    fresh, again, other = (untrained(trained, seed) for seed in (1, 1, 2))
    assert fresh.name == f"untrained-{trained.name}" and fresh.network == trained.network
    expected = user_network.fresh(jax.random.key(1))
    for name, leaf in fresh.params.items():
        np.testing.assert_array_equal(leaf, again.params[name])
        assert (leaf != other.params[name]).any() and leaf.dtype == np.float32
        if name != "up":
            np.testing.assert_array_equal(leaf, expected[name])
    assert not expected["up"].any() and fresh.params["up"].all()
    assert fresh.params["up"].std() == pytest.approx(1 / np.sqrt(user_network.WIDTH), rel=0.4)


def wrapped(init):
    return user_network._wrapped(user_network.network, init=init)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (lambda key: {}, "another tree"),
        (lambda key: {**user_network.fresh(key), "up": key}, "the shape ()"),
        (lambda: {}, "can't be traced"),
        (3, "can't be called"),
    ],
)
def test_a_function_that_draws_other_parameters_is_refused_in_one_line(init, words):
    with pytest.raises(ConfigError) as error:
        wrapped(init)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_the_function_the_way_out_is_named():
    with pytest.raises(ConfigError, match="init="):
        untrained(user_network.denoiser())


def test_networks_of_other_programs_are_drawn_as_these_draw_them():
    shapes = {
        "to_qkv.weight": (24, 8, 3, 3),
        "to_qkv.bias": (24,),
        "norm.g": (1, 8, 1, 1),
        "mem_kv": (2, 300),
    }
    shapes |= {"norm.weight": (8,), "norm.bias": (8,)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    init = lucidrains_init.initializer(params)
    assert init == lucidrains_init.initializer(dict(reversed(params.items())))  # shares compiled programs
    drawn = init(jax.random.key(0))
    assert {name: leaf.shape for name, leaf in drawn.items()} == shapes
    bound = 1 / np.sqrt(8 * 3 * 3)
    for name in ("to_qkv.weight", "to_qkv.bias"):
        assert 0.8 * bound < np.abs(drawn[name]).max() <= bound
    assert drawn["mem_kv"].std() == pytest.approx(1, rel=0.1)
    assert (drawn["norm.g"] == 1).all() and (drawn["norm.weight"] == 1).all() and not drawn["norm.bias"].any()


@pytest.mark.parametrize(("kind", "of_bias"), [("DhariwalUNet", 1), ("SongUNet", 0)])
def test_networks_of_edm_are_drawn_as_edm_draws_them_but_no_branch_ends_in_zeros(kind, of_bias):
    """Ranges by NVlabs/edm, its `weight_init` with the arguments of either class."""
    shapes = {"a.conv0.weight": (24, 8, 3, 3), "a.conv0.bias": (24,), "a.conv1.weight": (24, 8, 3, 3)}
    shapes |= {"a.qkv.weight": (24, 8, 3, 3), "a.norm0.weight": (8,), "a.norm0.bias": (8,)}
    shapes |= {"map_label.weight": (64, 10)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    drawn = edm_init.initializer(kind, params)(jax.random.key(0))
    bound = (1 if kind == "DhariwalUNet" else np.sqrt(6 * 72 / (72 + 216))) / np.sqrt(72)
    of_qkv = bound * (1 if kind == "DhariwalUNet" else np.sqrt(0.2))
    for name, largest in {"conv0.weight": bound, "conv0.bias": bound * of_bias, "qkv.weight": of_qkv}.items():
        assert 0.8 * largest <= np.abs(drawn[f"a.{name}"]).max() <= largest * 1.000001
    assert drawn["a.conv1.weight"].std() == pytest.approx(1 / np.sqrt(72), rel=0.1)
    assert (drawn["a.norm0.weight"] == 1).all() and not drawn["a.norm0.bias"].any()
    of_table = 1 if kind == "DhariwalUNet" else np.sqrt(2 / 74)
    assert drawn["map_label.weight"].std() == pytest.approx(of_table, rel=0.1)
