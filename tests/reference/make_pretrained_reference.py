"""Freezes what the PyTorch networks of ADM and ddim compute, for `tests/test_interop_families.py`.

Run once, from the top folder, with the `torch` extra, PyYAML and clones of github.com/openai/guided-diffusion,
github.com/openai/improved-diffusion and github.com/ermongroup/ddim:

    python -m tests.reference.make_pretrained_reference GUIDED_DIFFUSION IMPROVED_DIFFUSION DDIM

Writes `pretrained.npz` beside this file. For each network NAME: `NAME/config` (what its users write, as text),
`NAME/weights/...` (the state dict, drawn from a seed, so not stored: only `NAME/seed`), `x` (NCHW), `t`, and
`NAME/output`, `NAME/gradient` (of sum(output^2) / 2 with respect to x) at three timesteps; `NAME/fed` is what
the network was fed for them. Weights are drawn by `draw`, tensor by tensor in the order of their names, so
that the test draws the same from names and shapes alone.
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
        "improved",
        {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "learn_sigma": True, "num_heads": 4}
        | {"attention_resolutions": "4", "class_cond": False, "use_checkpoint": False, "dropout": 0.3}
        | {"num_heads_upsample": -1, "use_scale_shift_norm": True},
        {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True},
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


def main(guided: str, improved: str, ddim: str) -> None:
    sys.path[:0] = [guided, improved, ddim]
    arrays = {}
    for name, (program, arguments, beside) in NETWORKS.items():
        config = written(program, arguments, beside)
        model = make(program, arguments)
        arrays |= {f"{name}/{key}": value for key, value in computed(model, arguments, beside).items()}
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        arrays |= {f"{name}/config": config, f"{name}/shapes": json.dumps(shapes)}
    np.savez_compressed(HERE / "pretrained.npz", **arrays)
    print((HERE / "pretrained.npz").stat().st_size, "bytes")


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
    if program == "guided_class":
        return importlib.import_module("guided_diffusion.unet").UNetModel(**arguments).eval()
    package = {"guided": "guided_diffusion", "improved": "improved_diffusion"}[program]
    return importlib.import_module(f"{package}.script_util").create_model(**arguments).eval()


def written(program: str, arguments: dict, beside: dict) -> str:
    """What users keep beside the weights: YAML, JSON, or a command line."""
    if program == "ddim":
        parts = {"model": arguments, "data": {"image_size": SIDE, "channels": 3, "rescaled": True}}
        return json.dumps(parts | {"diffusion": {"beta_schedule": "linear", "num_diffusion_timesteps": 1000}})
    flags = arguments | beside
    if program == "guided_class":
        return json.dumps(flags)
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def computed(model, arguments: dict, beside: dict) -> dict[str, np.ndarray]:
    """Input, timesteps, output and gradient."""
    import torch

    state = draw({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    side = arguments.get("image_size", SIDE)
    x = np.random.default_rng(1).standard_normal((len(T), 3, side, side)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    scale = 1000 / beside["diffusion_steps"] if beside.get("rescale_timesteps") else 1
    fed = torch.tensor(T) * scale if scale != 1 else torch.tensor(T)
    output = model(given, fed)[:, :3]
    (output**2).sum().div(2).backward()
    corner = (slice(None), slice(None), slice(0, 8), slice(0, 8))  # of the 32-pixel network, to stay small
    return {"output": output.detach().numpy()[corner], "gradient": given.grad.numpy()[corner]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("guided", "improved", "ddim"):
        parser.add_argument(name)
    main(**vars(parser.parse_args()))
