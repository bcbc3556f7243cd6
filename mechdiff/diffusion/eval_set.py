"""The set that a denoiser is examined on: clean images, timesteps, and the key of their noise."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, ExaminedImages, Images, PRNGKey, PyTree
from mechdiff.diffusion.process import Noised, images_at, noised
from mechdiff.diffusion.schedules import NoiseSchedule, timestep_array


class EvalBatch(NamedTuple):
    """Images denoised together at one timestep: a pytree, one argument of compiled functions.

    Attributes:
      images: clean, in [-1, 1].
      indices: of the images; image i has the noise `process.image_noise(key, i)`.
      t: the timestep of all of them, in [0, T).
      key: of the noise.
      condition: what each image is conditioned on (a class, an image), leaves `(batch, ...)`; None: nothing.
    """

    images: Images
    indices: Int[AnyArray, " batch"]
    t: int | Int[AnyArray, ""]
    key: PRNGKey
    condition: PyTree = None

    def noised(self, schedule: NoiseSchedule) -> Noised:
        """The noised images x_t, with their timesteps and noise."""
        return noised(schedule, self.images, self.t, self.key, self.indices)


BATCH = EvalBatch(IMAGES, IMAGES, ALL, ALL, IMAGES)  # its partition, for `devices.map_over_images`


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Clean images, the timesteps at which they are noised, and the key of their noise.

    Image i has the noise of `process.image_noise(key, i)` at every timestep and under every intervention
    (common random numbers).

    Attributes:
      images: in [-1, 1], NHWC, `(images, height, width, channels)`: crossed with the timesteps. Or nested in
        them, `(timesteps, images, ...)`: different images and noise at every timestep.
      timesteps: `(timesteps,)` ints in [0, T).
      key: of the noise.
      condition: what each image is conditioned on, such as class labels; leaves have the images' leading
        axes, `(images, ...)` or `(timesteps, images, ...)`; None: nothing.

    Raises:
      ConfigError: images of another rank or of whole numbers, timesteps that are no integers or below 0,
        nested images for another number of timesteps, or a condition for another number of images. (A
        timestep of T or above gives NaN: a set knows no schedule.)

    Example:
      >>> import jax
      >>> eval_set = EvalSet(np.zeros((4, 8, 8, 3), np.float32), [10, 500], jax.random.key(0))
      >>> eval_set.count, eval_set.images_total, eval_set.timesteps
      (4, 4, array([ 10, 500], dtype=int32))
      >>> eval_set.batch(1, np.array([0, 3])).indices
      array([0, 3])
    """

    images: ExaminedImages
    timesteps: Int[AnyArray, " timesteps"]
    key: PRNGKey
    condition: PyTree = None

    def __init__(self, images, timesteps, key: PRNGKey, condition: PyTree = None):
        images, timesteps = np.asarray(images), timestep_array(timesteps)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ConfigError(
                f"images of type {images.dtype}: expected floats in [-1, 1]; mechdiff.data.to_float makes "
                "them of bytes"
            )
        if images.ndim not in (4, 5):
            raise ConfigError(
                f"images of shape {images.shape}: expected (images, height, width, channels), or "
                "(timesteps, images, height, width, channels) for different images at every timestep"
            )
        if images.ndim == 5 and len(images) != len(timesteps):
            raise ConfigError(f"nested images for {len(images)} timesteps, but {len(timesteps)} are examined")
        condition = jax.tree.map(np.asarray, condition)
        for leaf in jax.tree.leaves(condition):
            if leaf.shape[: images.ndim - 3] != images.shape[:-3]:
                raise ConfigError(
                    f"condition of shape {leaf.shape} for images of shape {images.shape}: give an array "
                    f"of one entry per image, leading axes {images.shape[:-3]}"
                )
        values = {"images": images, "timesteps": timesteps, "key": key, "condition": condition}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        side, timesteps = "x".join(map(str, self.images.shape[-3:])), self.timesteps.tolist()
        shown = timesteps if len(timesteps) <= 12 else f"{len(timesteps)} timesteps"
        nested = ", others at each" if self.nested else ""
        return f"EvalSet({self.count} images {side} at t = {shown}{nested})"

    @property
    def count(self) -> int:
        """Number of images at each timestep."""
        return self.images.shape[-4]

    @property
    def nested(self) -> bool:
        """Whether every timestep has images of its own."""
        return self.images.ndim == 5

    @property
    def images_total(self) -> int:
        """Number of different images over all timesteps: more than `count` if they are nested."""
        return int(np.prod(self.images.shape[:-3]))

    def at(self, t_index: int) -> tuple[Images, Int[np.ndarray, " images"]]:
        """The images examined at timestep `timesteps[t_index]`, and the indices of their noise."""
        return images_at(self.images, t_index)

    def condition_at(self, t_index: int) -> PyTree:
        """The condition of the images at timestep `timesteps[t_index]`: leaves `(images, ...)`."""
        if self.images.ndim == 4:
            return self.condition
        return jax.tree.map(lambda leaf: leaf[t_index], self.condition)

    def batch(self, t_index: int, image_rows: Int[np.ndarray, " batch"] | None = None) -> EvalBatch:
        """Rows `image_rows` of the images at timestep `timesteps[t_index]`; all of them if None."""
        images, indices = self.at(t_index)
        condition, t = self.condition_at(t_index), int(self.timesteps[t_index])
        if image_rows is not None:
            whole = images, indices, condition
            images, indices, condition = jax.tree.map(lambda leaf: leaf[image_rows], whole)
        return EvalBatch(images, indices, t, self.key, condition)
