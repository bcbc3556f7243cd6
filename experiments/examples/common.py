"""What the examples share: a few lines of training, and leaving every component out in turn."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save

from mechdiff.diffusion.process import denoising_loss
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.record import STACKED
from mechdiff.models.traced import TracedDenoiser
from mechdiff.storage import files

SAVED_EVERY = 250  # steps


def trained(
    loss: Callable,
    params,
    batches: Callable,
    *,
    steps: int,
    rate: float,
    seed: int = 0,
    state_file: Path | None = None,
):
    """Parameters after `steps` of Adam with a cosine schedule, and the losses.

    Args:
      loss: `loss(params, key, batch)`, a scalar.
      batches: `batches(key)` draws a batch; under jit.
      state_file: where parameters, moments and losses are kept now and then; training goes on from there.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, key):
        draw, noise = jax.random.split(key)
        value, slope = jax.value_and_grad(loss)(params, noise, batches(draw))
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = jax.jit(optimizer.init)(params), []
    if state_file is not None and state_file.exists():
        (params, state), losses = _read(state_file, (params, state))
    keys = jax.random.split(jax.random.key(seed), steps)
    for number in range(len(losses), steps):
        params, state, value = step(params, state, keys[number])
        losses.append(value)
        done = number + 1
        if state_file is not None and (done % SAVED_EVERY == 0 or done == steps):
            _write(state_file, (params, state), losses)
    return params, np.asarray(losses)


def _write(path: Path, tree, losses) -> None:
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    files.write_atomic(path, save(arrays | {"losses": np.asarray(losses)}))


def _read(path: Path, like):
    arrays = load_file(path)
    leaves = [arrays[str(i)] for i in range(len(jax.tree.leaves(like)))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), list(arrays["losses"])


def loss_increases(denoiser: TracedDenoiser, x0, t, noise, condition=None) -> dict[str, np.ndarray]:
    """What leaving a component out (zero ablation) adds to the denoising loss, image by image.

    In units of the mean clean loss, so that the mean over images is the relative loss increase.

    Returns:
      component -> `(images,)`.
    """

    @jax.jit
    def losses(intervention):
        def predict(x, t):
            return denoiser.predict(intervention, x, t, condition)

        return denoising_loss(predict, denoiser.schedule, x0, t, noise)

    names, stacked = leave_one_out(denoiser.identity, denoiser.components())
    clean = losses(denoiser.identity)
    ablated = jax.jit(jax.vmap(losses, in_axes=(STACKED,)))(stacked)
    return dict(zip(names, np.asarray((ablated - clean) / clean.mean()), strict=True))


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
