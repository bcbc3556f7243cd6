"""Networks of ADM and ddim that PyTorch computed (`make_pretrained_reference`), and folders of them."""

import functools
import json
from pathlib import Path

import numpy as np
from reference.make_pretrained_reference import draw
from safetensors.numpy import save_file

from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.models.pretrained.diffusers import reader as diffusers

REFERENCE = Path(__file__).with_name("pretrained.npz")


@functools.cache
def frozen(name: str) -> dict:
    """Config as text, state dict, output and gradient (NHWC) of one network."""
    with np.load(REFERENCE) as stored:
        arrays = {key: stored[f"{name}/{key}"] for key in ("config", "shapes", "output", "gradient")}
    arrays["config"] = str(arrays["config"])
    arrays["state"] = draw(json.loads(str(arrays.pop("shapes"))))
    return arrays


def written(folder: Path, config: str, state: dict) -> Path:
    """A folder as its users have it."""
    folder.mkdir(exist_ok=True)
    kind = "config.json" if config.startswith("{") else "flags.txt"
    (folder / kind).write_text(config)
    save_file(state, folder / (diffusers.WEIGHTS if "UNet2DModel" in config else adm_options.WEIGHTS))
    return folder
