"""The gain with which a planted component denoises best, as training would have found it.

There the gradient in its gate vanishes, as it nearly does in trained networks.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core.types import Images
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import set_gate
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import denoise

DOSES = (0.0, 0.5, 1.0)
BOUNDS = (0.2, 5.0)  # of the change in one round


def best_gain(
    network: Callable[[float], Denoiser],
    component: str,
    images: Images,
    timesteps: Int[np.ndarray, " levels"],
    rounds: int = 2,
) -> float:
    """The gain of `component` with the least loss, each level counting alike.

    The loss is nearly quadratic in its gate: each round takes the vertex through three doses.

    Args:
      network: gain -> subject.
    """
    gain = 1.0
    for _ in range(rounds):
        denoiser = network(gain)
        doses = [set_gate(denoiser.identity, [component], dose) for dose in DOSES]
        loss = np.stack([losses(denoiser, each, images, timesteps) for each in doses])
        curve = np.polyfit(DOSES, (loss / loss[-1]).mean(axis=1), 2)
        gain *= float(np.clip(-curve[1] / (2 * curve[0]), *BOUNDS))
    return gain


def losses(
    denoiser: Denoiser, intervention: Intervention, images: Images, timesteps: Int[np.ndarray, " levels"]
) -> Float[np.ndarray, " levels"]:
    """Mean denoising loss at each level under an intervention."""
    network = denoiser.unet, denoiser.schedule, denoiser.params, intervention
    return np.array([_loss(*network, images, int(t)) for t in timesteps])


@functools.partial(jax.jit, static_argnames="unet")
def _loss(unet, schedule, params, intervention, x0: Images, t: Int[Array, ""]) -> Float[Array, ""]:
    at, noise = jnp.full(len(x0), t), image_noise(jax.random.key(0), jnp.arange(len(x0)), x0.shape[1:])
    predicted = denoise(unet, schedule, params, intervention, q_sample(schedule, x0, at, noise), at)
    return jnp.mean((predicted - noise) ** 2)
