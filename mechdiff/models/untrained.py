"""An untrained network of the same configuration: the control of every finding."""

import dataclasses
from typing import Any

import jax
import numpy as np

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.models.traced.denoiser import TracedDenoiser
from mechdiff.models.unet import init_unet


def untrained(denoiser: Examinable, seed: int = 0) -> Any:
    """A fresh network of the same configuration: a control that shows which findings are due to training.

    Kernels that training initializes to zero, whose ablation could not change the prediction, are drawn like
    the rest: normal, of variance 1 / fan-in. The fan-in is the product of all axes but the last, with that
    of the layers of a scan.

    Args:
      denoiser: a UNet of this package, or a function that was wrapped with `init`.
    Returns:
      A denoiser of the same kind.
    Raises:
      ConfigError: a function without `init`, whose fresh parameters only its author can make.
    """
    params = _fresh(denoiser, seed)
    rng = np.random.default_rng(seed)

    def drawn(value: Any) -> np.ndarray:
        value = np.asarray(value)
        if value.ndim < 2 or value.any():
            return value
        return (rng.normal(size=value.shape) / np.sqrt(np.prod(value.shape[:-1]))).astype(value.dtype)

    params = jax.tree.map(drawn, params)
    return dataclasses.replace(denoiser, name=f"untrained-{denoiser.name}", params=params)  # type: ignore[type-var]


def _fresh(denoiser: Examinable, seed: int) -> PyTree:
    """Parameters as training begins with."""
    key = jax.random.key(seed)
    if isinstance(denoiser, Denoiser):
        return jax.jit(init_unet, static_argnums=1)(key, denoiser.unet)[0]
    check_can_draw(denoiser)
    return jax.jit(denoiser.network.init)(key)  # type: ignore[union-attr]


def check_can_draw(denoiser: Examinable) -> None:
    """Refuses a network of which no untrained control can be made; ConfigError, as `untrained`."""
    init = denoiser.network.init if isinstance(denoiser, TracedDenoiser) else None
    if not isinstance(denoiser, Denoiser) and init is None:
        raise ConfigError(
            f"how parameters of {denoiser.name} are drawn before training is not known, so there is no "
            "untrained control; wrap it with init=, a function of a PRNG key that returns them, or leave "
            "controls out (no --untrained; in a study study.controls=false, study.role_sets=0)"
        )
