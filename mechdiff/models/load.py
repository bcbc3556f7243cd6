"""Loads an exported model, as a record to be examined or as its parts."""

from pathlib import Path
from typing import Any

import jax

from mechdiff.core.config import ExperimentConfig, from_dict
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import init_unet
from mechdiff.storage import checkpoint


def load_trained(folder: Path) -> tuple[ExperimentConfig, PyTree, Intervention, dict[str, Any]]:
    """An exported model: its config, EMA parameters, identity intervention and training record."""
    params, config, record = checkpoint.load_model(folder)
    config = from_dict(config)
    shapes, identity = jax.jit(init_unet, static_argnums=1).eval_shape(jax.random.key(0), config.unet)
    checkpoint.check_shapes(params, shapes, folder)
    identity = jax.jit(lambda key: init_unet(key, config.unet)[1])(jax.random.key(0))
    return config, params, identity, record


def load_denoiser(model: Path, name: str = "") -> tuple[Denoiser, ExperimentConfig, dict]:
    """An exported model ready to be examined, its config, and its training record.

    Args:
      name: shown in results; the folder's if empty.
    """
    trained, params, identity, record = load_trained(model)
    schedule = make_schedule(trained.diffusion)
    return Denoiser(name or model.name, trained.unet, schedule, params, identity), trained, record
