"""Networks of diffusers' `UNet2DModel` in PyTorch, frozen by `make_unet_reference.py`."""

import functools
import json
from pathlib import Path

import numpy as np
from reference.networks import identity_of

from mechdiff.models.pretrained.diffusers import reader as diffusers
from mechdiff.models.pretrained.files import tensors

PATHS = {path.stem.removeprefix("unet_"): path for path in sorted(Path(__file__).parent.glob("unet_*.npz"))}
GATED = "heads"  # the reference that has ablations


@functools.cache
def reference(name):
    """Config, parameters, identity, and the frozen arrays (images NHWC) of one PyTorch network."""
    with np.load(PATHS[name]) as stored:
        arrays = dict(stored)
    config = diffusers.unet_config(json.loads(str(arrays.pop("config"))))
    weights = {k.removeprefix("weights/"): arrays.pop(k) for k in list(arrays) if k.startswith("weights/")}
    arrays = {k: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for k, a in arrays.items()}
    params = tensors.to_params(weights, diffusers.names(config), config, name)
    return config, params, identity_of(config), arrays
