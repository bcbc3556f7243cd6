"""An untrained network of the same configuration: the control of every finding."""

import dataclasses

import jax
import numpy as np

from mechdiff.core.errors import ConfigError
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.models.unet import init_unet


def untrained(denoiser: Examinable, seed: int = 0) -> Denoiser:
    """A fresh network of the same configuration, to see what of a finding is due to training.

    Kernels that training starts at zero, with which no ablation could change the prediction, are drawn like
    the rest: normal, of variance 1 / fan-in.

    Raises:
      ConfigError: a network that is no UNet of ours, whose fresh parameters only its author can make.
    """
    if not isinstance(denoiser, Denoiser):
        raise ConfigError(
            f"{denoiser.name} is no UNet of this package, and how its parameters are drawn is not known; "
            "wrap it with fresh parameters and examine that too"
        )
    params = jax.jit(init_unet, static_argnums=1)(jax.random.key(seed), denoiser.unet)[0]
    rng = np.random.default_rng(seed)

    def leaf(value):
        value = np.asarray(value)
        if value.ndim == 1 or value.any():
            return value
        return (rng.normal(size=value.shape) / np.sqrt(np.prod(value.shape[:-1]))).astype(value.dtype)

    return dataclasses.replace(denoiser, name=f"untrained-{denoiser.name}", params=jax.tree.map(leaf, params))
