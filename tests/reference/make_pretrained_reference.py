"""Freezes what the PyTorch networks of ADM and ddim compute, for `tests/models/pretrained/test_families.py`.

Run once, from the top folder, with the `torch` extra, and clones of github.com/openai/guided-diffusion,
github.com/openai/improved-diffusion and github.com/ermongroup/ddim:

    python -m tests.reference.make_pretrained_reference GUIDED_DIFFUSION IMPROVED_DIFFUSION DDIM

Writes `pretrained.npz` beside this file. For each network NAME: `NAME/config` (what its users write,
as text), `NAME/shapes` (of its tensors), and `NAME/output` and `NAME/gradient` (of sum(output^2) / 2 with
respect to the input), NCHW, at the timesteps `T`. Both input and weights are drawn from seeds, not stored,
weights by `draw` tensor by tensor in the order of their names, and the test draws the same.
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
T = (3, 321, 987)

SIDE = 8


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict with activations near 1, by names and shapes."""
    rng, state = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        new = rng.standard_normal(shape)
        if name.endswith("weight") and len(shape) > 1:
            new /= np.sqrt(np.prod(shape[1:]))
        else:
            new = name.endswith("weight") + 0.2 * new
        state[name] = new.astype(np.float32)
    return state


SCRIPT = {"image_size": SIDE, "num_channels": 32, "num_res_blocks": 1, "num_heads": 2}
SCRIPT |= {"attention_resolutions": "4", "class_cond": False}
CLASS = {"image_size": SIDE, "in_channels": 3, "model_channels": 64, "out_channels": 6, "num_res_blocks": 1}
NETWORKS = {  # name -> program, arguments of what makes the network, and what its users write beside it
    "upsample_heads": ("guided", SCRIPT | {"channel_mult": "1,2", "num_heads_upsample": 4}, {}),
    "half_multiplier": (
        "guided_class",
        CLASS | {"channel_mult": (0.5, 1), "attention_resolutions": (2,), "num_heads": 2},
        {"diffusion_steps": 1000},
    ),
    "new_order": (
        "guided",
        SCRIPT | {"channel_mult": "1,1", "use_new_attention_order": True, "use_scale_shift_norm": True},
        {},
    ),
    "rescaled": (
        "improved_class",
        {"in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1, "num_heads": 4}
        | {"attention_resolutions": (2,), "channel_mult": (1, 2), "use_scale_shift_norm": True},
        {"image_size": SIDE, "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True},
    ),
    "ddim": (
        "ddim",
        {"ch": 32, "out_ch": 3, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
        | {"dropout": 0.1, "in_channels": 3, "resamp_with_conv": True, "type": "simple"},
        {},
    ),
    "ddim_pooling": (
        "ddim",
        {"ch": 32, "out_ch": 3, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [8]}
        | {"dropout": 0.0, "in_channels": 3, "resamp_with_conv": False, "type": "simple"},
        {},
    ),
}


SCRIPT32 = {  # of improved-diffusion's README, for CIFAR-10, but narrower; absent flags are the scripts' own
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 3,
    "learn_sigma": True,
    "dropout": 0.3,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
}


def main(guided: str, improved: str, ddim: str) -> None:
    sys.path[:0] = [guided, improved, ddim]
    arrays = {}
    for name, (program, arguments, beside) in NETWORKS.items():
        config = written(program, arguments, beside)
        model = make(program, arguments)
        arrays |= {f"{name}/{key}": value for key, value in computed(model, arguments, beside).items()}
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        arrays |= {f"{name}/config": config, f"{name}/shapes": json.dumps(shapes)}
    arrays |= script32()
    np.savez_compressed(HERE / "pretrained.npz", **arrays)
    print((HERE / "pretrained.npz").stat().st_size, "bytes")


def script32() -> dict[str, str]:
    """Flags, and shapes of tensors, of a network as improved-diffusion's scripts make it."""
    script = importlib.import_module("improved_diffusion.script_util")
    model, _ = script.create_model_and_diffusion(**script.model_and_diffusion_defaults() | SCRIPT32)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    config = " ".join(f"--{name} {value}" for name, value in SCRIPT32.items())
    return {"script32/config": config, "script32/shapes": json.dumps(shapes)}


def make(program: str, arguments: dict):
    """The network of a program."""
    if program == "ddim":
        space = types.SimpleNamespace
        config = space(
            model=space(**arguments),
            data=space(image_size=SIDE),
            diffusion=space(num_diffusion_timesteps=1000),
        )
        return importlib.import_module("models.diffusion").Model(config).eval()
    if program == "guided":
        return importlib.import_module("guided_diffusion.script_util").create_model(**arguments).eval()
    package = {"guided_class": "guided_diffusion", "improved_class": "improved_diffusion"}[program]
    return importlib.import_module(f"{package}.unet").UNetModel(**arguments).eval()


def written(program: str, arguments: dict, beside: dict) -> str:
    """What users keep beside the weights: YAML, JSON, or a command line."""
    if program == "ddim":
        parts = {"model": arguments, "data": {"image_size": SIDE, "channels": 3, "rescaled": True}}
        return json.dumps(parts | {"diffusion": {"beta_schedule": "linear", "num_diffusion_timesteps": 1000}})
    flags = arguments | beside
    if program.endswith("_class"):
        return json.dumps(flags)
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def computed(model, arguments: dict, beside: dict) -> dict[str, np.ndarray]:
    """Input, timesteps, output and gradient."""
    import torch

    state = draw({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    x = np.random.default_rng(1).standard_normal((len(T), 3, SIDE, SIDE)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    scale = 1000 / beside["diffusion_steps"] if beside.get("rescale_timesteps") else 1
    fed = torch.tensor(T) * scale if scale != 1 else torch.tensor(T)
    output = model(given, fed)[:, :3]
    (output**2).sum().div(2).backward()
    return {"output": output.detach().numpy(), "gradient": given.grad.numpy()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("guided", "improved", "ddim"):
        parser.add_argument(name)
    main(**vars(parser.parse_args()))
