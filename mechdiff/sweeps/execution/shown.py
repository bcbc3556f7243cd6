"""Digests and provenance that are saved with results."""

import jax
import numpy as np

from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests


def shown_digests(eval_set: EvalSet) -> dict:
    """Digests of images, noise, timesteps and, if there is one, condition: JSON-ready."""
    shown = {
        "images": digests.digest_arrays(eval_set.images),
        "noise": digests.digest_arrays(jax.random.key_data(eval_set.key)),
        "timesteps": eval_set.timesteps.tolist(),
    }
    if eval_set.condition is not None:
        shown["condition"] = digests.digest_arrays(eval_set.condition)
    return shown


def provenance(denoiser: Examinable) -> dict:
    """Provenance of a result: the denoiser's name, digest of its parameters, noise schedule."""
    log_snr = np.asarray(denoiser.schedule.log_snr)
    return {
        "denoiser": denoiser.name,
        "parameters_sha256": digests.digest_device_arrays(denoiser.params),
        "schedule": f"{len(log_snr)} timesteps, log-SNR from {log_snr.max():.2f} to {log_snr.min():.2f}",
    }
