"""Freezes what PyTorch and diffusers' `UNet2DModel` compute, for `tests/test_unet.py` to compare with.

Run once, from the top folder, with the `torch` extra installed:

    python -m tests.reference.make_unet_reference

Writes `unet_NAME.npz` beside this file: `config` (JSON of the arguments), `weights/...` (the state
dict, random, float16: the network that is run holds exactly these values), `x` (NCHW), `t`, `output`,
and for one network `ablated/COMPONENT`, the output with that component set to zero by a hook.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

from experiments.benchmarks.torch_baseline import hooked, hooks
from mechdiff.core.config import UNetConfig
from mechdiff.models.pretrained.diffusers.reader import stage_module_paths, unet_config

DOWN, UP, ATTN_DOWN, ATTN_UP = "DownBlock2D", "UpBlock2D", "AttnDownBlock2D", "AttnUpBlock2D"
COMMON = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
LAST = {"down_block_types": (DOWN, ATTN_DOWN), "up_block_types": (ATTN_UP, UP), "attention_head_dim": 8}
MODELS = {
    # google/ddpm-cifar10-32, narrower
    "cifar10": {
        "sample_size": 16,
        "block_out_channels": (8, 12, 12, 12),
        "layers_per_block": 2,
        "down_block_types": (DOWN, ATTN_DOWN, DOWN, DOWN),
        "up_block_types": (UP, UP, ATTN_UP, UP),
        "attention_head_dim": None,
        "norm_num_groups": 4,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "defaults": COMMON | LAST,
    "heads": COMMON
    | {"down_block_types": (ATTN_DOWN, DOWN), "up_block_types": (ATTN_UP, ATTN_UP), "attention_head_dim": 4}
    | {"norm_eps": 1e-6, "downsample_padding": 0, "freq_shift": 1, "layers_per_block": 2},
    # Without a norm in the middle's attention; heads that don't fill the channels; residual blocks
    # downsample, convolutions upsample.
    "film": COMMON
    | {"down_block_types": (ATTN_DOWN, ATTN_DOWN), "up_block_types": (ATTN_UP, UP), "attention_head_dim": 6}
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None, "downsample_type": "resnet"},
    "centered": COMMON
    | LAST
    | {"center_input_sample": True, "in_channels": 1, "out_channels": 2, "act_fn": "mish"}
    | {"mid_block_scale_factor": 1.5, "time_embedding_dim": 20},
    "plain": COMMON
    | {"down_block_types": (DOWN, DOWN), "up_block_types": (UP, UP), "add_attention": False}
    | {"block_out_channels": (12, 8), "flip_sin_to_cos": False, "sample_size": 12},
}
ABLATED = "heads"
ROWS = 2


def component_name(theirs: str, unet: UNetConfig) -> str:
    """Our name of a component, from their path of its block and the component's last word."""
    path, last = theirs.rsplit(".", 1)
    ours = {module_path: stage for stage, module_path in stage_module_paths(unet).items()}
    return f"{ours[path]}.{last}"


def build(arguments: dict, rng: np.random.Generator) -> diffusers.UNet2DModel:
    """The network with random weights of a size that keeps activations near 1, exact in float16."""
    model = diffusers.UNet2DModel(**arguments).eval()
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("weight") and value.ndim > 1:
            new = rng.standard_normal(value.shape) / np.sqrt(np.prod(value.shape[1:]))
        else:
            new = name.endswith("weight") + 0.2 * rng.standard_normal(value.shape)
        state[name] = torch.from_numpy(new.astype(np.float16).astype(np.float32))
    model.load_state_dict(state)
    return model


@torch.no_grad()
def main():
    for seed, (name, arguments) in enumerate(MODELS.items()):
        rng = np.random.default_rng(seed)
        model = build(arguments, rng)
        shape = (ROWS, model.config.in_channels, *2 * [model.config.sample_size])
        x, t = torch.from_numpy(rng.standard_normal(shape).astype(np.float32)), torch.tensor([3, 987])
        weights = model.state_dict().items()
        arrays = {f"weights/{key}": value.numpy().astype(np.float16) for key, value in weights}
        arrays |= {"x": x.numpy(), "t": t.numpy().astype(np.int32), "output": model(x, t).sample.numpy()}
        if name == ABLATED:
            for component, place in hooks(model).items():
                with hooked(*place):
                    output = model(x, t).sample.numpy()
                arrays[f"ablated/{component_name(component, unet_config(arguments))}"] = output
        path = Path(__file__).with_name(f"unet_{name}.npz")
        np.savez_compressed(path, config=json.dumps(arguments), **arrays)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, output sd {arrays['output'].std():.2f}")


if __name__ == "__main__":
    main()
