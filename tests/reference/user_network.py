"""What a user's module may look like: functions that make denoisers, and functions that don't."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.models.traced import wrap

SIDE, WIDTH = 4, 6
NOT_A_FUNCTION = 3


def network(params, x, t, label=None):
    """A network of two heads and an MLP over pixels, which may be told a class."""
    h = x.reshape(len(x), SIDE * SIDE, 3) @ params["enter"] + jnp.cos(t / 50)[:, None, None]
    if label is not None:
        h = h + checkpoint_name(params["labels"][label], "class")[:, None]
    split = h.reshape(len(x), SIDE * SIDE, 2, WIDTH // 2)
    pattern = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", split, split))
    pattern = checkpoint_name(pattern, "attn.pattern@1")
    heads = checkpoint_name(jnp.einsum("bhqk,bkhd->bqhd", pattern, split), "attn.head@2")
    h = h + heads.reshape(h.shape)
    h = h + checkpoint_name(jnp.tanh(h @ params["up"]), "mlp")
    return (h @ params["leave"]).reshape(x.shape)


def _parameters():
    rng = np.random.default_rng(0)
    shapes = {"enter": (3, WIDTH), "labels": (3, WIDTH), "up": (WIDTH, WIDTH), "leave": (WIDTH, 3)}
    return {name: jnp.float32(rng.normal(size=shape) / 3) for name, shape in shapes.items()}


def fresh(key):
    """Parameters before training; what enters the residual stream from the MLP is 0."""
    keys = iter(jax.random.split(key, 4))
    drawn = {name: jax.random.normal(next(keys), leaf.shape) / 2 for name, leaf in _parameters().items()}
    return drawn | {"up": jnp.zeros((WIDTH, WIDTH))}


def _wrapped(fn, *condition, **options):
    example = jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros(1, int), *condition
    return wrap(fn, _parameters(), schedule=linear_schedule(100), example=example, **options)


def denoiser():
    """On its own samples, if no images are named."""
    return _wrapped(network)


def with_init():
    """Whose untrained control can be made, with images."""
    return _wrapped(network, init=fresh), with_classes()[1]


def with_classes():
    """With images and their classes."""
    rng = np.random.default_rng(1)
    images, labels = rng.uniform(-1, 1, (12, SIDE, SIDE, 3)), np.arange(12) % 3
    return _wrapped(network, jnp.zeros(1, int)), images.astype(np.float32), labels


def classes_without_images():
    return with_classes()[0]


def takes_an_argument(steps):
    return denoiser()


def not_a_denoiser():
    return {"params": 3}


def no_names():
    return _wrapped(lambda params, x, t: x @ params["enter"] @ params["leave"])


def shapes_that_do_not_fit():
    return _wrapped(lambda params, x, t: checkpoint_name(x, "all") @ params["leave"])


def no_jax_function():
    return _wrapped(lambda params, x, t: checkpoint_name(np.asarray(x), "all"))
