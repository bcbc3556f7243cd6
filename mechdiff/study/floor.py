"""The smallest possible loss of networks whose data's distribution is known, beside their own loss."""

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff.data import gaussian
from mechdiff.diffusion.closed_form import StationaryDenoiser, stationary_denoiser
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.diffusion.process import denoising_loss
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.held_out import NAMES


def best_denoiser(images: EvalImages, schedule: NoiseSchedule) -> StationaryDenoiser | None:
    """The optimal denoiser of the images that a network is examined on; None where it is not known.

    Args:
      schedule: of the network.
    """
    if images.facts.get("name") != NAMES["gaussian"]:
        return None
    return stationary_denoiser(schedule, gaussian.spectrum(images.scored.shape[1]), gaussian.COLORS)


def with_floor(sweep: xr.Dataset, best: StationaryDenoiser, eval_set: EvalSet) -> xr.Dataset:
    """The sweep, with the loss of the optimal denoiser in the units of its clean loss.

    Returns:
      The sweep and `floor`, the expected loss, dim `t`, and `floor_loss`, that on the images and noise of
      the sweep, dims `t, image`.
    """
    every = np.arange(eval_set.count)
    losses = [_losses(best, eval_set.batch(t_index, every)) for t_index in range(len(eval_set.timesteps))]
    about = {"units": "mean squared error of the noise"}
    expected = np.asarray(jax.jit(StationaryDenoiser.loss)(best, eval_set.timesteps))
    return sweep.assign(
        floor=("t", expected, about | {"long_name": "expected loss of the optimal denoiser"}),
        floor_loss=(("t", "image"), np.stack(losses), about | {"long_name": "loss of the optimal denoiser"}),
    )


@jax.jit
def _losses(best: StationaryDenoiser, batch: EvalBatch) -> Float[Array, " images"]:
    drawn = batch.noised(best.schedule)
    return denoising_loss(best, best.schedule, batch.images, drawn.t, drawn.noise)
