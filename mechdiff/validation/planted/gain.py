"""The gain of a planted component: the one at which it denoises best, as training would set it, or the one at
which its help and its harm cancel.

At the best gain the gradient of the loss with respect to its gate vanishes, as it nearly does in trained
networks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import brentq

from mechdiff.core.types import Images
from mechdiff.diffusion.process import noised
from mechdiff.interventions.build import set_gate
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser

GATES = (0.0, 0.5, 1.0)  # gate values of the parabola
BOUNDS = (0.2, 5.0)  # of the change in one round
LEFT = 1.0  # pooled relative loss increase at the balanced gain, %


def best_gain(
    network: Callable[[float], Denoiser],
    component: str,
    images: Images,
    timesteps: Int[np.ndarray, " timesteps"],
    rounds: int = 2,
) -> float:
    """The gain of `component` with the least relative loss, timesteps weighted evenly.

    The loss is nearly quadratic in its gate: each round takes the vertex of the parabola through `GATES`.

    Args:
      network: gain -> denoiser.
      rounds: of the fit; each changes the gain by a factor within `BOUNDS`.
    """
    gain = 1.0
    for _ in range(rounds):
        denoiser = network(gain)
        interventions = [set_gate(denoiser.identity, [component], gate) for gate in GATES]
        loss = np.stack([losses(denoiser, item, images, timesteps) for item in interventions])
        curve = np.polyfit(GATES, (loss / loss[-1]).mean(axis=1), 2)
        gain *= float(np.clip(-curve[1] / (2 * curve[0]), *BOUNDS))
    return gain


def balanced_gain(
    network: Callable[[float], Denoiser],
    component: str,
    images: Images,
    timesteps: Int[np.ndarray, " timesteps"],
) -> float:
    """The gain at which help and harm of `component` cancel: ablating it raises the pooled loss by `LEFT`
    only.

    Args:
      network: gain -> denoiser; above the best gain, the component does harm where it would have helped.
    """
    best = best_gain(network, component, images, timesteps)

    def excess(gain: float) -> float:
        denoiser = network(gain)
        ablated = set_gate(denoiser.identity, [component], 0.0)
        clean, without = (losses(denoiser, x, images, timesteps) for x in (denoiser.identity, ablated))
        return 100 * float((without / clean - 1).mean()) - LEFT

    return float(brentq(excess, best, 4 * best, xtol=1e-3))


def losses(
    denoiser: Denoiser, intervention: Intervention, images: Images, timesteps: Int[np.ndarray, " timesteps"]
) -> Float[np.ndarray, " timesteps"]:
    """Mean denoising loss at each timestep under an intervention."""
    return np.array([_loss(denoiser, intervention, images, int(t)) for t in timesteps])


@jax.jit
def _loss(denoiser: Denoiser, intervention: Intervention, x0: Images, t: Int[Array, ""]) -> Float[Array, ""]:
    x_t, timesteps, noise = noised(denoiser.schedule, x0, t, jax.random.key(0), jnp.arange(len(x0)))
    return jnp.mean((denoiser.predict(intervention, x_t, timesteps) - noise) ** 2)
