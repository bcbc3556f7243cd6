"""A residual network in Equinox on points of the plane, whose exact denoiser is known, examined.

The points come from a mixture of two Gaussians, which `closed_form.mixture_denoiser` denoises as well as can
be: what a component's ablation costs can be read against what the network lacks. The batch is a `jax.vmap`:
named values are those of one point. `python -m experiments.examples.equinox_mlp` takes less than a minute.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from experiments.examples.common import loss_increases, show, time_features, trained
from mechdiff.diffusion.closed_form import mixture_denoiser
from mechdiff.diffusion.parameterization import Parameterization, flow_schedule
from mechdiff.models.traced import TracedDenoiser, wrap

SCHEDULE = flow_schedule(1000)
FLOW = Parameterization(output="flow", time_scale=1000.0)
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
SPREAD = 0.2


def points(key, count: int):
    """Points of the mixture, as images of one pixel with two channels."""
    which, where = jax.random.split(key)
    centers = jnp.asarray(MEANS, jnp.float32)[jax.random.randint(which, (count,), 0, 2)]
    return (centers + SPREAD * jax.random.normal(where, (count, 2)))[:, None, None, :]


def exact():
    """The posterior-mean noise of these points."""
    return mixture_denoiser(SCHEDULE, np.full(2, 0.5), MEANS[:, None, None, :], np.full(2, SPREAD))


class Network(eqx.Module):
    """Residual blocks over a point and its time; every branch, and the time, are named."""

    into: eqx.nn.Linear
    time: eqx.nn.Linear
    blocks: list
    out: eqx.nn.Linear

    def __init__(self, width: int, depth: int, key):
        first, second, last, *keys = jax.random.split(key, 3 + depth)
        self.into = eqx.nn.Linear(2, width, key=first)
        self.time = eqx.nn.Linear(16, width, key=second)
        self.blocks = [eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.silu, key=key) for key in keys]
        self.out = eqx.nn.Linear(width, 2, key=last)

    def __call__(self, x, features):
        h = self.into(x) + checkpoint_name(self.time(features), "into.time")
        for number, block in enumerate(self.blocks):
            h = h + checkpoint_name(block(h), f"block{number}.mlp")
        return self.out(h)


def denoiser(*, steps: int = 3000, width: int = 32, depth: int = 3, batch: int = 256) -> TracedDenoiser:
    """The network, trained by flow matching and wrapped."""
    arrays, static = eqx.partition(Network(width, depth, jax.random.key(0)), eqx.is_array)

    def fn(arrays, x, time):
        network = eqx.combine(arrays, static)
        return jax.vmap(network)(x[:, 0, 0], time_features(time, 16))[:, None, None, :]

    def loss(arrays, key, x0):
        at, noise = jax.random.split(key)
        t = jax.random.randint(at, (batch,), 0, SCHEDULE.steps)
        network = functools.partial(fn, arrays)
        return FLOW.training_loss(network, SCHEDULE, x0, t, jax.random.normal(noise, x0.shape)).mean()

    arrays, _ = trained(loss, arrays, lambda key: points(key, batch), steps=steps, rate=3e-3)
    example = (jnp.zeros((1, 1, 1, 2)), jnp.zeros(1, jnp.int32))
    return wrap(fn, arrays, schedule=SCHEDULE, example=example, name="equinox-mlp", parameterization=FLOW)


def main():
    """Trains, compares with the exact denoiser, and leaves out every component."""
    model = denoiser()
    x0, t = points(jax.random.key(1), 512), jnp.full(512, 500)
    noise = jax.random.normal(jax.random.key(2), x0.shape)
    x_t = SCHEDULE.sqrt_alphas_bar[500] * x0 + SCHEDULE.sqrt_one_minus_alphas_bar[500] * noise
    best = exact()(x_t, t)
    ours = model.predict(model.identity, x_t, t)
    print(f"loss: exact {np.mean((best - noise) ** 2):.4f}, network {np.mean((ours - noise) ** 2):.4f}")
    show(loss_increases(model, x0, t, noise))


if __name__ == "__main__":
    main()
