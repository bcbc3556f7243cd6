"""Functions whose rows depend on their position in the batch: found by a look, shown by a run, warned of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as name

from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.models.traced import wrap
from mechdiff.models.traced.batch_position import change_by_position, suspect
from mechdiff.models.traced.sites import ROWS

SHAPE = (4, 4, 2)
TABLE = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((3, 3, 2, 2)).astype(np.float32)


def ghost_norm(x):
    groups = x.reshape(2, -1, *SHAPE)
    return (groups - groups.mean(1, keepdims=True)).reshape(x.shape)


def guided(x):
    """Classifier-free guidance as it is often written: both halves of a batch are one."""
    half = x[: len(x) // 2]
    return jnp.concatenate([half, half])


MIXED = {
    "roll": lambda x: x + jnp.roll(x, 1, 0),
    "first": lambda x: x - x[:1],
    "cumsum": lambda x: jnp.cumsum(x, 0),
    "sort": lambda x: jnp.sort(x, 0),
    "flip": lambda x: x + x[::-1],
    "noise": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "ghost_norm": ghost_norm,
    "guided": guided,
    "position": lambda x: x + jnp.arange(len(x))[:, None, None, None],
    "constant": lambda x: x + np.arange(len(x))[:, None, None, None],
    "update": lambda x: x.at[0].set(0.0),
    "padded": lambda x: jax.lax.pad(x, 0.0, [(1, -1, 0)] + 3 * [(0, 0, 0)]),
    "scan": lambda x: jax.lax.scan(lambda sums, row: (sums + row, sums), x[0] * 0, x)[1],
    "within": jax.jit(lambda x: jax.checkpoint(lambda h: h * jnp.flip(h, 0))(x)),
    "transposed": lambda x: jnp.moveaxis(jnp.cumsum(jnp.moveaxis(x, 0, -1), -1), -1, 0),
    "interleaved": lambda x: x.reshape(-1, len(x)).T.reshape(x.shape),
    "fourier": lambda x: jnp.fft.fft(x, axis=0).real,
    "convolved_rows": lambda x: (
        x
        + jax.lax.conv(x.reshape(1, -1, 32, 1), jnp.ones((len(x), len(x), 1, 1)), (1, 1), "SAME").reshape(
            x.shape
        )
    ),
}
APART = {
    "elementwise": lambda x: jnp.tanh(x * TABLE[0]) + 1,
    "normalized": lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True),
    "convolution": lambda x: jax.lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "attention": lambda x: jax.nn.dot_product_attention(x, x, x),
    "embedding": lambda x: x + jnp.asarray(TABLE)[jnp.clip(x[:, 0, 0, 0].astype(int), 0, 9)][:, None, None],
    "tokens": lambda x: jnp.cumsum(x.reshape(len(x), 16, 2), 1)[:, ::-1].reshape(x.shape),
    "pool": lambda x: nnx.avg_pool(x, (2, 2), (2, 2)).repeat(2, 1).repeat(2, 2),
    "mapped": jax.vmap(lambda row: jnp.roll(row, 1, 0) @ TABLE[:2]),
    "turns": lambda x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, KERNEL.reshape(9, 2, 2))[0],
    "skip": lambda x: jnp.concatenate([x, x[..., :1]], -1)[..., 1:],
    "unused": lambda x: (jnp.cumsum(x, 0), 2 * x)[1],
}
FOLDED = {  # not shown by the look alone
    "folded": lambda x: (x.reshape(-1, 2) @ TABLE[:2]).reshape(x.shape),
    "row_by_row": lambda x: jax.lax.map(jnp.tanh, x),
    "top": lambda x: x + jax.lax.top_k(x, 1)[0],
}


def look(fn) -> str:
    few, more = (jax.make_jaxpr(fn)(jnp.ones((rows, *SHAPE))) for rows in ROWS)
    return suspect(few, more, ROWS)


def run(fn) -> float | None:
    rows = np.random.default_rng(2).standard_normal((16, *SHAPE)).astype(np.float32)
    return change_by_position(lambda _, x: fn(x), (0.0, rows))


@pytest.mark.parametrize("fn", MIXED.values(), ids=MIXED)
def test_rows_that_depend_on_their_position_are_found_and_shown(fn):
    assert look(fn) and run(fn) > 0.05


@pytest.mark.parametrize("fn", APART.values(), ids=APART)
def test_rows_that_do_not_are_passed_without_a_run(fn):
    assert look(fn) == ""
    assert run(fn) is None  # a null control of the look


@pytest.mark.parametrize("fn", FOLDED.values(), ids=FOLDED)
def test_a_run_acquits_what_a_look_can_not(fn):
    assert look(fn) and run(fn) is None


@pytest.mark.parametrize("leaf", [jax.ShapeDtypeStruct((), np.float32), np.float32(np.nan)])
def test_parameters_without_numbers_are_not_run(leaf):
    assert change_by_position(lambda p, x: p * jnp.cumsum(x, 0), (leaf, np.ones((16, 2)))) is None


def refused(x):
    raise ValueError("not here")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.pure_callback(refused, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: jnp.cumsum(x, 0) / jnp.zeros(()),
    ],
    ids=["fails", "not finite"],
)
def test_of_a_run_that_gives_no_numbers_nothing_is_known(fn):
    assert run(fn) is None


@pytest.mark.parametrize("training", [True, False])
def test_dropout_that_is_on_is_named(training, caplog):
    """Flax NNX's modules are in training mode until `.eval()`."""
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    if not training:
        model.eval()
    graph, state = nnx.split(model)
    fn = lambda state, x, t, label: name(nnx.merge(graph, state)(x), "a")
    example = (np.zeros((1, *SHAPE), np.float32), np.zeros(1, int), np.zeros(1, int))
    wrap(fn, state, schedule=linear_schedule(10), example=example, name="mine")
    assert ("mine: an image's numbers change" in caplog.text) == training
    assert ("it draws random bits" in caplog.text and ".eval()" in caplog.text) == training
