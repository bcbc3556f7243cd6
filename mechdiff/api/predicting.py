"""The noise that a model predicts in noisy images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mechdiff.api.replacing import replacements_of
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Images
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.models.denoiser import check_inputs


def predict(model: Any, x_t: Images, t: int | Sequence[int] | AnyArray, condition: Any = None) -> Array:
    """`Model.predict`, whose arguments and errors these are."""
    t = t if isinstance(t, int | jax.Array) else np.asarray(t)
    x_t, timesteps = check_inputs(model.denoiser, x_t, t)
    condition = conditions.of_rows(model.denoiser.network, condition, len(x_t))
    acting = _acting(model, np.asarray(timesteps), len(x_t)) if model.sources else model.intervention
    return _predicted(model.denoiser, acting, jnp.asarray(x_t), jnp.asarray(timesteps), condition)


def _acting(model: Any, timesteps: Int[np.ndarray, " n"], n: int) -> Intervention:
    """The intervention of a model at the one timestep of all `n` rows, replacements from images computed."""
    if len(set(timesteps.tolist())) != 1:
        raise ConfigError("replacements from images need one t for all rows; call predict for each t")
    at = [int(timesteps[0])]
    shared, rows = replacements_of(model.denoiser, model.intervention, model.sources, at, n)
    values = {site: value[0] for site, value in (shared | rows).items()}
    replacement = dict(model.intervention.replacement) | values
    return dataclasses.replace(model.intervention, replacement=replacement)


@jax.jit
def _predicted(denoiser: Any, intervention: Intervention, x_t: Any, t: Any, condition: Any = None) -> Array:
    """`denoiser.predict`, compiled once a shape, whatever the intervention."""
    return denoiser.predict(intervention, x_t, t, condition)
