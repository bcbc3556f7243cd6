"""Evaluation of a trained denoiser: denoising losses, and memorization of training images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mechdiff import stats
from mechdiff.core.types import Images, PRNGKey
from mechdiff.diffusion.process import denoising_loss, image_noise
from mechdiff.diffusion.schedules import NoiseSchedule

PERCENTILE = 0.01  # of held-out images' distances, below which a sample may be a copy
SMALLEST = 1e-12  # distance that is divided by


def losses(
    denoise_fn: Callable,
    schedule: NoiseSchedule,
    key: PRNGKey,
    images: Images,
    timesteps: Int[Array, " timesteps"],
) -> Float[Array, "timesteps batch"]:
    """Unweighted denoising loss of each image at each timestep.

    Noise is that of `image_noise(key, i)`: the same at every timestep and in every call.
    """
    noise = image_noise(key, jnp.arange(images.shape[0]), images.shape[1:])

    def loss_at(t):
        return denoising_loss(denoise_fn, schedule, images, jnp.full(images.shape[0], t), noise)

    return jax.lax.map(loss_at, timesteps)


def nearest_distances(
    queries: UInt8[np.ndarray, "n height width channels"],
    references: UInt8[np.ndarray, "m height width channels"],
    block: int = 4096,
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Distance of each query to its nearest reference, and that reference's index.

    The distance is the root mean square difference of pixels in [-1, 1] units. References are read in
    blocks, so a memory-mapped set is never copied whole.
    """
    flat = queries.reshape(len(queries), -1).astype(np.float32)
    best, where = np.full(len(flat), np.inf), np.zeros(len(flat), np.int64)
    for start in range(0, len(references), block):
        chunk = np.asarray(references[start : start + block]).reshape(-1, flat.shape[1]).astype(np.float32)
        squared = (flat**2).sum(1)[:, None] + (chunk**2).sum(1) - 2 * flat @ chunk.T
        index = squared.argmin(1)
        value = squared[np.arange(len(flat)), index]
        closer = value < best
        best, where = np.where(closer, value, best), np.where(closer, start + index, where)
    return np.sqrt(np.maximum(best, 0) / flat.shape[1]) / 127.5, where


def memorization(
    samples: np.ndarray, train: np.ndarray, held_out: np.ndarray, mirrored: bool = False
) -> dict[str, float]:
    """Whether samples are closer to training images than held-out images are.

    Args:
      mirrored: training mirrored its images at random, so that their mirror images are training images too.

    Returns:
      `samples_nearest`, `held_out_nearest`: median distance to the nearest training image;
      `ratio`: the first over the second (far below 1 means memorization);
      `ratio_low`, `ratio_high`: its 95 % interval, percentiles of resamples of both (.94 to .99 cover, of 16
      and 64 samples beside 16 to 512 held-out images);
      `copies`: fraction of samples closer to a training image than the 1st percentile of held-out images;
      `copies_low`, `copies_high`: its exact 95 % interval, that percentile being taken as it is;
      `copies_expected`: without memorization, 0.01 if there are many held-out images and more if there are
      few: the least of 16 is no 1st percentile, so that .06 of samples are below.
    """

    def nearest(images: np.ndarray) -> np.ndarray:
        distances = nearest_distances(images, train)[0]
        if not mirrored:
            return distances
        # As far from a mirrored training image as the mirror image is from that one.
        return np.minimum(distances, nearest_distances(images[:, :, ::-1], train)[0])

    of_samples, of_held_out = nearest(samples), nearest(held_out)
    closer = of_samples < np.quantile(of_held_out, PERCENTILE)
    low, high = _interval_of_ratio(of_samples, of_held_out)
    count = len(of_held_out)
    units = stats.Units(np.arange(len(closer)), len(closer), clustered=False)
    copies = stats.share_interval(closer[None], units)
    return {
        "samples_nearest": float(np.median(of_samples)),
        "held_out_nearest": float(np.median(of_held_out)),
        "ratio": float(np.median(of_samples) / max(np.median(of_held_out), SMALLEST)),
        "ratio_low": low,
        "ratio_high": high,
        "copies": float(copies.estimate),
        "copies_low": float(copies.low),
        "copies_high": float(copies.high),
        # Of a percentile between the k-th and the next of n distances, k / (n + 1) are below on average.
        "copies_expected": (PERCENTILE * (count - 1) + 1) / (count + 1),
    }


def _interval_of_ratio(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " m"], repeats: int = 2000
) -> tuple[float, float]:
    """95 % interval of the ratio of two medians; NaN where there are fewer than 2 of either."""
    fewest = min(len(first), len(second))
    if fewest < 2:
        return float("nan"), float("nan")
    rng, level = np.random.default_rng(0), stats.expanded_level(0.95, fewest)
    medians = [np.median(rng.choice(side, (repeats, len(side))), axis=1) for side in (first, second)]
    drawn = medians[0] / np.maximum(medians[1], SMALLEST)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summary(train_losses: np.ndarray, test_losses: np.ndarray) -> dict:
    """Mean held-out loss, per timestep (`..._by_level`, as saved records have it) and pooled, and its gap to
    the loss on training images."""
    return {
        "test_loss": float(test_losses.mean()),
        "train_loss": float(train_losses.mean()),
        "gap": float(test_losses.mean() - train_losses.mean()),
        "test_loss_by_level": [float(value) for value in test_losses.mean(1)],
        "train_loss_by_level": [float(value) for value in train_losses.mean(1)],
    }
