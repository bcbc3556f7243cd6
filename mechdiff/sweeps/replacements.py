"""Replacements that differ between images, for `resample` and `noise` ablation.

  resample  the activation of another image of the same set, at the same timestep and with that image's own
            noise: each image is the donor of exactly one other in a draw, and no donor comes twice
  noise     mean + deviation * xi, of the reference images per timestep and position, and xi standard normal,
            fresh for every image, timestep, site and draw. This definition is ours
Where there are several draws, the losses under them are averaged, not the replacements.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core import keys, ranges
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests
from mechdiff.sweeps.activations import activation_moments, of_batch, replacements_at


@runtime_checkable
class ReplacementSource(Protocol):
    """A source of replacements.

    Attributes:
      draws: how many replacements it has for each image; losses under them are averaged.
    """

    draws: int

    def at(self, t_index: int, image_rows: Int[np.ndarray, " batch"], draw: int) -> PyTree:
        """Site -> replacement at timestep number `t_index`, with an axis of images if they differ.

        Args:
          image_rows: of the images of the set that are ablated; as many as that axis has.
          draw: in [0, draws).
        """
        ...

    def digest(self) -> str:
        """SHA-256 of everything that decides its numbers."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """Replacements that are the same for all images, `values`: site -> `(timesteps, *site)`."""

    values: PyTree
    draws: int = 1

    def at(self, t_index: int, image_rows: Int[np.ndarray, " batch"], draw: int) -> PyTree:
        """The replacements of one timestep."""
        return replacements_at(self.values, t_index)

    def digest(self) -> str:
        """Digest of the values."""
        return digests.digest_arrays(self.values)


@dataclasses.dataclass(frozen=True)
class Resample:
    """Replacements of `resample` ablation; made by `replacements.resample_replacements`.

    Attributes:
      donors: `(draws, images)`, index of the image whose activation each image gets.
      collection: which values of a donor are used, as for `activations.of_batch`.
    """

    denoiser: Examinable
    eval_set: EvalSet
    donors: Int[np.ndarray, "draws images"]
    collection: str = CAPTURED

    @property
    def draws(self) -> int:
        """Donors of one image."""
        return len(self.donors)

    def at(self, t_index: int, image_rows: Int[np.ndarray, " batch"], draw: int) -> PyTree:
        """The activations of the images' donors."""
        batch = self.eval_set.batch(t_index, self.donors[draw, image_rows])
        return of_batch(self.denoiser, batch, collection=self.collection)

    def digest(self) -> str:
        """SHA-256 of images, timesteps, noise, donors, parameters and, where there is one, condition."""
        eval_set = self.eval_set
        decisive = [eval_set.images, eval_set.timesteps, jax.random.key_data(eval_set.key), self.donors]
        decisive.append(self.denoiser.params)
        if eval_set.condition is not None:
            decisive.append(eval_set.condition)
        return digests.digest_arrays(decisive)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Replacements of `noise` ablation: `means`, `deviations` are site -> `(timesteps, *site)`; see
    `noise_replacements`.
    """

    means: PyTree
    deviations: PyTree
    timesteps: Int[np.ndarray, " timesteps"]
    key: PRNGKey
    draws: int = 1

    def at(self, t_index: int, image_rows: Int[np.ndarray, " batch"], draw: int) -> PyTree:
        """Gaussian activations, one of each site for every image."""
        mean, deviation = replacements_at(self.means, t_index), replacements_at(self.deviations, t_index)
        return _gaussian(mean, deviation, self.key, int(self.timesteps[t_index]), draw, image_rows)

    def digest(self) -> str:
        """Digest of the moments and the key."""
        key = jax.random.key_data(self.key)
        return digests.digest_arrays([self.means, self.deviations, self.timesteps, key, np.int32(self.draws)])


@jax.jit
def _gaussian(
    mean: PyTree,
    deviation: PyTree,
    key: PRNGKey,
    t: Int[Array, ""],
    draw: Int[Array, ""],
    images: Int[Array, " batch"],
) -> PyTree:
    def activation(site: str) -> Float[Array, "batch ..."]:
        site_key = jax.random.fold_in(jax.random.fold_in(keys.stream(key, site), t), draw)
        return mean[site] + deviation[site] * image_noise(site_key, images, mean[site].shape)

    return {site: activation(site) for site in mean}


def as_source(values: PyTree) -> ReplacementSource:
    """A source of replacements unchanged, or arrays site -> `(timesteps, *site)` as a source."""
    return Constant(values) if isinstance(values, dict) else values


def derangements(key: PRNGKey, count: int, draws: int) -> Int[np.ndarray, "draws count"]:
    """`draws` permutations of `count` images without fixed points, in which no image gets a donor twice.

    The images are put in a random circle; in each draw the donor is another number of steps ahead. They
    are not uniform over all derangements, but every other image is as likely a donor.

    Raises:
      ConfigError: fewer than one draw, or not fewer draws than images.
    """
    if not 1 <= draws < count:
        raise ConfigError(f"{draws} donors from {count} images; an image can have 1 to {count - 1} others")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    circle, steps = rng.permutation(count), 1 + rng.permutation(count - 1)[:draws]
    inverse = np.argsort(circle)
    return circle[(inverse + steps[:, None]) % count].astype(np.int32)


def resample_replacements(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    draws: int = 1,
) -> Resample:
    """Replacements of `resample` ablation for a sweep of this `eval_set`.

    Args:
      eval_set: of the sweep; donors come from the images of the same timestep.
      draws: donors of each image, fixed by the key, fewer than there are images.
    """
    donors = derangements(keys.stream(eval_set.key, "donors"), eval_set.count, draws)
    return Resample(denoiser, eval_set, donors)


def noise_replacements(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    draws: int = 1,
) -> Noise:
    """Replacements of `noise` ablation, with the moments of `eval_set`: reference images, other than those
    that are scored; ConfigError for less than one draw."""
    draws = ranges.whole("draws", draws, 1)
    means, deviations = activation_moments(denoiser, eval_set)
    return Noise(means, deviations, eval_set.timesteps, keys.stream(eval_set.key, "noise fills"), draws)
