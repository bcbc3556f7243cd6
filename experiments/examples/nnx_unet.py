"""A small UNet in Flax NNX, written without this package but for five named values, and examined.

`python -m experiments.examples.nnx_unet` trains it for a minute on synthetic faces and leaves out every
component.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from experiments.examples.common import loss_increases, show, time_features, trained
from mechdiff.data.synthetic import faces
from mechdiff.diffusion.process import training_loss
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.models.traced import TracedDenoiser, wrap

SCHEDULE = linear_schedule()
SIZE = 16  # pixels


class Block(nnx.Module):
    """A residual block with time injection; its branch is named."""

    def __init__(self, width: int, name: str, rngs: nnx.Rngs):
        self.name = name
        self.norm = nnx.GroupNorm(width, num_groups=4, rngs=rngs)
        self.first = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.time = nnx.Linear(width, width, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), rngs=rngs)

    def __call__(self, h, time):
        branch = self.first(nnx.silu(self.norm(h)))
        branch = branch + checkpoint_name(self.time(time), f"{self.name}.time")[:, None, None, :]
        return h + checkpoint_name(self.second(nnx.silu(branch)), f"{self.name}.residual")


class UNet(nnx.Module):
    """Two resolutions, one skip connection, attention in the middle."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.width, self.heads = width, heads
        self.into = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.down, self.mid = Block(width, "down", rngs), Block(width, "mid", rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.join = nnx.Conv(2 * width, width, (3, 3), rngs=rngs)
        self.up = Block(width, "up", rngs)
        self.out = nnx.Conv(width, 3, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def attend(self, h):
        batch, side, _, width = h.shape
        split = self.qkv(h).reshape(batch, side * side, 3, self.heads, width // self.heads)
        mixed = nnx.dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        mixed = checkpoint_name(mixed, "mid.attention.head@2")  # (batch, tokens, heads, depth)
        return h + self.project(mixed.reshape(h.shape))

    def __call__(self, x, t):
        time = time_features(t, self.width)
        skip = self.down(self.into(x), time)
        h = self.attend(self.mid(nnx.avg_pool(skip, (2, 2), (2, 2)), time))
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        h = self.join(jnp.concatenate([h, checkpoint_name(skip, "up.skip")], axis=-1))
        return self.out(nnx.silu(self.up(h, time)))


def some_faces(key):
    """A batch of synthetic faces."""
    return faces(jax.random.key(1), jax.random.randint(key, (16,), 0, 4096), SIZE).image


def denoiser(*, steps: int = 300, width: int = 32, heads: int = 4, draw=some_faces) -> TracedDenoiser:
    """The network, trained on the batches that `draw(key)` makes, and wrapped."""
    graph, state = nnx.split(UNet(width, heads, nnx.Rngs(0)))

    def fn(state, x, t):
        return nnx.merge(graph, state)(x, t)

    def loss(state, key, x0):
        at, noise = jax.random.split(key)
        t = jax.random.randint(at, x0.shape[:1], 0, SCHEDULE.steps)
        network = functools.partial(fn, state)
        return training_loss(network, SCHEDULE, x0, t, jax.random.normal(noise, x0.shape)).mean()

    state, _ = trained(loss, state, draw, steps=steps, rate=2e-3)
    example = (jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros(1, jnp.int32))
    return wrap(fn, state, schedule=SCHEDULE, example=example, name="nnx-unet")


def main():
    """Trains, and prints what leaving a component out does at the middle of the schedule."""
    model = denoiser()
    x0 = faces(jax.random.key(1), jnp.arange(5000, 5016), SIZE).image
    noise = jax.random.normal(jax.random.key(2), x0.shape)
    show(loss_increases(model, x0, jnp.full(16, 400), noise))


if __name__ == "__main__":
    main()
