"""Array aliases and the contracts that higher layers implement."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

PyTree = Any

AnyArray = Array | np.ndarray  # on a device or on the host

Images = Float[AnyArray, "batch height width channels"]  # in [-1, 1]
# One set for all timesteps (crossed), or one per timestep (nested): see `process.images_at`.
ExaminedImages = Images | Float[AnyArray, "timesteps images height width channels"]
Features = Float[AnyArray, "batch _ _ _"]  # NHWC feature maps; side and channels differ from stage to stage
Timesteps = Int[AnyArray, "batch"]  # in [0, T)
PRNGKey = Key[Array, ""]


@runtime_checkable
class DenoiseFn(Protocol):
    """Anything that predicts the noise in `x_t`: a UNet, a UNet under intervention, a closed form."""

    def __call__(self, x_t: Images, t: Timesteps, /) -> Images: ...


StepFn = Callable[..., jax.Array]
