"""Outputs, gradients and head ablations of lucidrains' and EDM's networks in PyTorch, for `foreign.npz`.

    python -m tests.reference.make_foreign_reference LUCIDRAINS EDM

LUCIDRAINS: a folder with denoising_diffusion_pytorch 2 in it (made with 2.2.5; einops, ema_pytorch); EDM: a
checkout of NVlabs/edm. Weights are not stored: shapes are, and `draw` makes the same from them.
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np

from .make_pretrained_reference import T, draw

HERE = Path(__file__).parent
SIDE = 8
SIGMAS = (0.02, 0.8, 40.0)
LUCIDRAINS = {  # arguments of Unet, and of GaussianDiffusion
    "lucidrains": (
        {"dim": 16, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8},
        {"timesteps": 1000},
    ),
    "lucidrains_all": (
        {"dim": 8, "init_dim": 12, "dim_mults": (1, 2, 2), "self_condition": True, "learned_variance": True}
        | {"attn_heads": (1, 2, 4), "attn_dim_head": (8, 8, 4), "full_attn": (False, True, False)}
        | {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 8},
        {"timesteps": 1000, "objective": "pred_noise", "beta_schedule": "cosine"},
    ),
}

EDM = {  # class, arguments
    "edm_adm": ("DhariwalUNet", {"model_channels": 64, "channel_mult": [1, 2], "attn_resolutions": [4]}),
    "edm_ddpmpp": ("SongUNet", {"model_channels": 16, "channel_mult": [1, 2], "augment_dim": 9}
                   | {"attn_resolutions": [4]}),
}  # fmt: skip
CLASSES = 5
LABELS = (1, 4, CLASSES)  # the last: no class


def noisy() -> np.ndarray:
    """Images NCHW."""
    return np.random.default_rng(1).standard_normal((len(T), 3, SIDE, SIDE)).astype(np.float32)


def main(lucidrains: str, edm: str) -> None:
    sys.path[:0] = [lucidrains, edm]
    arrays = {}
    for name in LUCIDRAINS:
        arrays |= {f"{name}/{key}": value for key, value in lucid(name).items()}
    for name in EDM:
        arrays |= {f"{name}/{key}": value for key, value in edm_network(name).items()}
    np.savez_compressed(HERE / "foreign.npz", **arrays)
    print((HERE / "foreign.npz").stat().st_size, "bytes")


def lucid(name: str) -> dict:
    """A network, and the state dict of its `GaussianDiffusion` beside an average, as a trainer saves them."""
    for absent in (
        "torchvision",
        "torchvision.transforms",
        "torchvision.utils",
        "accelerate",
    ):  # data, training
        sys.modules[absent] = types.SimpleNamespace(
            transforms=None, utils=None, Accelerator=None, __spec__=None, __path__=[]
        )
    package = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    ema = importlib.import_module("ema_pytorch").EMA
    arguments, diffusion = LUCIDRAINS[name]
    model = package.Unet(**arguments).eval()
    whole = (
        package.GaussianDiffusion(model, image_size=SIDE, **diffusion)
        if not arguments.get("learned_variance")
        else types.SimpleNamespace(model=model)
    )
    filled(model)
    values = computed(lambda x, t: model(x, t)[:, :3])
    projections = {path: module for path, module in model.named_modules() if path.endswith("to_out")}
    values |= hooked(model, projections, lambda x, t: model(x, t)[:, :3])
    values |= {"shapes": json.dumps(shapes_of(model))}
    if whole is not None and hasattr(whole, "state_dict"):
        average = ema(whole)
        for prefix, module in (("model.", whole), ("ema.", average)):
            names = [prefix + key for key in module.state_dict()]
            values[f"names/{prefix[:-1]}"] = json.dumps(names)
        values["betas"], values["loss_weight"] = whole.betas.numpy(), whole.loss_weight.numpy()
        values["alphas_cumprod"] = whole.alphas_cumprod.numpy()
    return values


def edm_network(name: str) -> dict:
    """D(x, sigma) of a network under EDM's preconditioning at sigmas of `SIGMAS`, and its gradient."""
    import torch

    networks = importlib.import_module("training.networks")
    kind, arguments = EDM[name]
    model = networks.EDMPrecond(SIDE, 3, label_dim=CLASSES, model_type=kind, num_blocks=1, **arguments).eval()
    shapes = {key: shape for key, shape in shapes_of(model).items() if "resample_filter" not in key}
    state = {key: torch.from_numpy(value) for key, value in draw(shapes).items()}
    model.load_state_dict(state, strict=False)
    labels = torch.eye(CLASSES + 1)[list(LABELS), :CLASSES]

    def call(x, t):
        return model(x, torch.tensor(SIGMAS), labels)

    values = computed(call)
    attending = {path: block for path, block in model.named_modules() if getattr(block, "num_heads", 0)}
    projections = {f"{path}.to_out": block.proj for path, block in attending.items()}
    values |= hooked(model, projections, call, {path: block.num_heads for path, block in attending.items()})
    return values | {"shapes": json.dumps(shapes)}


def shapes_of(model) -> dict:
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def filled(model) -> None:
    import torch

    state = draw(shapes_of(model))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})


def computed(call) -> dict[str, np.ndarray]:
    """Output, and gradient of half its square, NCHW."""
    import torch

    x = torch.from_numpy(noisy()).requires_grad_()
    output = call(x, torch.tensor(T))
    (output**2).sum().div(2).backward()
    return {"output": output.detach().numpy(), "gradient": x.grad.numpy()}


def hooked(model, projections: dict, call, counts: dict | None = None) -> dict:
    """Outputs, `(component, row, ...)`, without each head: zeros where it enters its output projection.

    Args:
      counts: heads by path, where they are no attribute of the module there.
    """
    import torch

    outputs, names = [], []
    for path, projection in projections.items():
        place = path.removesuffix(".to_out")
        heads = counts[place] if counts else model.get_submodule(place).heads
        width = next(projection.parameters()).shape[1] // heads
        for head in range(heads):

            def zeroed(module, inputs, columns=slice(head * width, (head + 1) * width)):
                changed = inputs[0].clone()
                changed[:, columns] = 0
                return (changed,)

            handle = projection.register_forward_pre_hook(zeroed)
            with torch.no_grad():
                outputs.append(call(torch.from_numpy(noisy()), torch.tensor(T)).numpy())
            names.append([path.removesuffix(".to_out"), head])
            handle.remove()
    return {"hooked": np.stack(outputs), "heads": json.dumps(names)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lucidrains")
    parser.add_argument("edm")
    main(**vars(parser.parse_args()))
