"""A saved pipeline of diffusers, and averages beside it."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.models.pretrained.diffusers.reader import WEIGHTS

DIFFUSION = DiffusionConfig(schedule="cosine", steps=40)


def averaged(pipeline: Path) -> None:
    """`unet_ema/` beside `unet/`, its numbers doubled."""
    copy = pipeline / "unet_ema"
    copy.mkdir()
    (copy / "config.json").write_bytes((pipeline / "unet" / "config.json").read_bytes())
    state = {name: 2 * value for name, value in load_file(pipeline / "unet" / WEIGHTS).items()}
    save_file(state, copy / WEIGHTS)


def bias(model) -> np.ndarray:
    return model.params["conv_in"]["conv"]["bias"]
