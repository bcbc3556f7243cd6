"""What the examples share: a few lines of training, and leaving every component out in turn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechdiff.diffusion.process import denoising_loss
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.record import STACKED
from mechdiff.models.traced import TracedDenoiser


def trained(loss: Callable, params, batches: Callable, *, steps: int, rate: float, seed: int = 0):
    """Parameters after `steps` of Adam with a cosine schedule, and the losses.

    Args:
      loss: `loss(params, key, batch)`, a scalar.
      batches: `batches(key)` draws a batch; under jit.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, key):
        draw, noise = jax.random.split(key)
        value, slope = jax.value_and_grad(loss)(params, noise, batches(draw))
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state, value = step(params, state, key)
        losses.append(value)
    return params, np.asarray(losses)


def loss_increases(
    denoiser: TracedDenoiser, x0, t, noise, components: str = ".*", condition=None
) -> dict[str, np.ndarray]:
    """What leaving a component out (zero ablation) adds to the denoising loss, image by image.

    In units of the mean clean loss, so that the mean over images is the relative loss increase.

    Returns:
      component -> `(images,)`.
    """

    @jax.jit
    def losses(intervention):
        predict = lambda x, t: denoiser.predict(intervention, x, t, condition)
        return denoising_loss(predict, denoiser.schedule, x0, t, noise)

    names, stacked = leave_one_out(denoiser.identity, components)
    clean = losses(denoiser.identity)
    ablated = jax.jit(jax.vmap(losses, in_axes=(STACKED,)))(stacked)
    return dict(zip(names, np.asarray((ablated - clean) / clean.mean())))


def show(increases: dict[str, np.ndarray]) -> None:
    """Components by their mean, with its standard error over images."""
    for name, values in sorted(increases.items(), key=lambda item: -item[1].mean()):
        error = values.std(ddof=1) / len(values) ** 0.5
        print(f"{name:24s} {100 * values.mean():9.1f} % +- {100 * error:.1f}")


def time_features(t, width: int, longest: float = 1000.0):
    """Sines and cosines of t, `(batch, width)`."""
    rates = jnp.exp(-jnp.log(longest) * jnp.arange(width // 2) / (width // 2))
    angles = t.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
