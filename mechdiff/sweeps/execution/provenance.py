"""What a result was made of: digests of its inputs, and facts on its denoiser, saved with it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests


def eval_set_digests(eval_set: EvalSet) -> dict:
    """Digests of the images, the key of their noise and the condition, if there is one, and the timesteps;
    JSON-ready."""
    inputs = {
        "images": digests.digest_arrays(eval_set.images),
        "noise": digests.digest_arrays(jax.random.key_data(eval_set.key)),
        "timesteps": eval_set.timesteps.tolist(),
    }
    if eval_set.condition is not None:
        inputs["condition"] = digests.digest_arrays(eval_set.condition)
    return inputs


def result_key(denoiser: Examinable, eval_set: EvalSet | None = None, **decisive: Any) -> str:
    """SHA-256 of everything that decides the numbers of a result; it names what is saved.

    Args:
      decisive: JSON-ready inputs besides the denoiser and the images. Their names are part of the key: with
        others, no saved result is found.
    """
    inputs = {} if eval_set is None else eval_set_digests(eval_set)
    return digests.digest_json({**denoiser.digests(), **inputs, **decisive, "numerics": NUMERICS_VERSION})


def store(folder: str | Path, key: str) -> Path:
    """Where the result of a key is kept in a folder."""
    return Path(folder) / f"{key[:16]}.zarr"


def provenance(denoiser: Examinable) -> dict:
    """Attributes of a result: the denoiser's name, a digest of its parameters, and its noise schedule."""
    log_snr = np.asarray(denoiser.schedule.log_snr)
    return {
        "denoiser": denoiser.name,
        "parameters_sha256": digests.digest_device_arrays(denoiser.params),
        "schedule": f"{len(log_snr)} timesteps, log-SNR from {log_snr.max():.2f} to {log_snr.min():.2f}",
    }
