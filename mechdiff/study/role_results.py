"""Roles of the heads of an examined network; synthetic faces have more targets, their masks and factors."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from mechdiff.analysis import roles
from mechdiff.analysis.roles import probes
from mechdiff.core.config import ExperimentConfig
from mechdiff.core.types import PRNGKey
from mechdiff.data import OFFSETS, synthetic
from mechdiff.interventions.components import Component
from mechdiff.models import untrained
from mechdiff.models.denoiser import Examinable
from mechdiff.study.examine import DenoiserAndImages

PROBED = 400  # faces that probes of factors are fitted on
BLOCK = 16  # faces generated together


def head_roles(
    examined: DenoiserAndImages,
    config: ExperimentConfig,
    timesteps: Sequence[int],
    noise: PRNGKey,
    folder: Path | None = None,
) -> xr.Dataset:
    """Roles of all heads, and the effects from which they are computed; dims `component, target, t, image`.

    Args:
      folder: as of `roles.role_effects`.
    """
    denoiser, images = examined.denoiser, examined.images
    chosen = heads(denoiser)
    count = max(math.ceil(config.study.role_sets / len(chosen)), roles.untrained_needed())
    fresh = [untrained.untrained(denoiser, config.seed + i) for i in range(count)]
    targets = {}
    if images.facts.get("name") == "synthetic":  # masks and factors are known of these
        targets = face_targets(examined.trained, len(images.scored))
    eval_set = images.scored_set(timesteps, noise)
    assigned, effect = roles.examine(
        denoiser,
        eval_set,
        fresh,
        chosen,
        count=config.study.role_sets,
        seed=config.seed,
        folder=folder,
        **targets,
    )
    cells = ("component", "target")
    return effect.assign(
        selectivity=(cells, assigned.selectivity),
        role=("component", list(assigned.role)),
        adjusted=("component", assigned.adjusted),
    )


def heads(denoiser: Examinable) -> list[Component]:
    """All attention heads."""
    chosen = denoiser.components()
    return [component for component in chosen if component.component_type == "head"]


def face_targets(trained: ExperimentConfig, count: int) -> dict:
    """Targets of synthetic faces for `roles.examine`: masks of held-out faces, probes of factors.

    Args:
      count: held-out faces, from the first; probes are fitted on training faces.
    """
    reference = _faces(trained, OFFSETS["train"], PROBED)
    fitted = probes.fit_all(reference.image, reference.factors)
    masks = _faces(trained, OFFSETS["test"], count).masks
    return {"masks": masks, "parts": synthetic.PARTS, "probes": probes.as_arrays(fitted)}


def _faces(trained: ExperimentConfig, start: int, count: int) -> synthetic.Face:
    data, size, key = trained.data, trained.unet.image_size, jax.random.key(0)
    blocks = [
        synthetic.faces(key, np.int32(first + np.arange(BLOCK)), size, data.complexity)
        for first in range(start, start + count, BLOCK)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *blocks)
