"""A denoiser of three named values: for examples that run in a second, and first steps."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mechdiff.core.types import Images
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.models.traced.denoiser import TracedDenoiser
from mechdiff.models.traced.wrapping import wrap

SHAPE = (2, 2, 3)  # of its images
STEPS = 100  # of its noise schedule


def predict_noise(params: dict[str, jax.Array], x: Images, t: jax.Array) -> Images:
    """eps = a x + b x + c x, each term named, whatever the timestep."""
    large = checkpoint_name(params["large"] * x, "large.mlp")
    small = checkpoint_name(params["small"] * x, "small.mlp")
    idle = checkpoint_name(params["idle"] * x, "idle.mlp")
    return large + small + idle


def toy_denoiser(large: float = 0.7, small: float = 0.2) -> TracedDenoiser:
    """A denoiser of 2x2 images whose components contribute `large`, `small` and nothing to the noise.

    For a gray image (0) x_t is the noise times its standard deviation, which is near 1 at late timesteps:
    there the prediction is right if the contributions sum to 1, and leaving out `large.mlp` costs more than
    leaving out `small.mlp`.

    Example:
      >>> [component.name for component in toy_denoiser().components()]
      ['large.mlp', 'small.mlp', 'idle.mlp']
    """
    params = {"large": jnp.float32(large), "small": jnp.float32(small), "idle": jnp.float32(0)}
    example = jnp.zeros((1, *SHAPE)), jnp.zeros(1, int)
    return wrap(predict_noise, params, schedule=cosine_schedule(STEPS), example=example, name="toy")
