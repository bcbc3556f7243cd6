"""Coordinates of the results of a sweep."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable


def component_coords(
    denoiser: Examinable,
    chosen: Sequence[Component],
    timesteps: Sequence[int] | Int[np.ndarray, " timesteps"],
    images: int,
) -> dict:
    """Coordinates `component` (with type, resolution, depth), `t` (with log-SNR) and `image` of a sweep."""
    timesteps = np.asarray(timesteps, np.int32)
    return {
        "component": [component.name for component in chosen],
        "t": timesteps,
        "image": np.arange(images),
        "log_snr": ("t", np.asarray(denoiser.schedule.log_snr)[timesteps]),
        "component_type": ("component", [component.component_type for component in chosen]),
        "resolution": ("component", [component.resolution for component in chosen]),
        "depth": ("component", [component.depth for component in chosen]),
    }
