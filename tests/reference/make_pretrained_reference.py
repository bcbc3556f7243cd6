"""Freezes what the PyTorch networks of ADM and ddim compute, for `models/pretrained/test_adm_and_ddim.py`.

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


UNET2D = {"sample_size": SIDE, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
UNET2D |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
UNET2D |= {"up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 8}
IMPROVED = {"in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1, "num_heads": 2}
IMPROVED |= {"attention_resolutions": (2,), "channel_mult": (1, 1)}
RESCALED = {
    "image_size": SIDE,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
    "rescale_timesteps": True,
}
CONDITIONED = {  # as NETWORKS; told classes (`LABELS`) or an image (`condition`) too
    "classes": (
        "guided_class",
        CLASS | {"channel_mult": (1, 1), "attention_resolutions": (2,)} | {"num_classes": 5},
        {},
    ),
    "classes_rescaled": (
        "improved_class",
        IMPROVED | {"num_classes": 5, "use_scale_shift_norm": True},
        RESCALED,
    ),
    "super_resolution": (
        "guided_sr",
        {"large_size": SIDE, "small_size": 2, "num_channels": 32, "num_res_blocks": 1, "learn_sigma": True}
        | {"attention_resolutions": "4", "num_heads": 2, "channel_mult": "1,1", "resblock_updown": True},
        {},
    ),
    "unet2d_table": ("diffusers", UNET2D | {"num_class_embeds": 5}, {}),
    "unet2d_number": ("diffusers", UNET2D | {"class_embed_type": "timestep"}, {}),
    "unet2d_vector": ("diffusers", UNET2D | {"class_embed_type": "identity"}, {}),
    "unet2d_joined": ("diffusers", UNET2D | {"in_channels": 5, "num_class_embeds": 5}, {}),
}
HOOKED = "unet2d_table"
HEADS_OF = {  # its attention, there and here
    "down_blocks.1.attentions.0": "down1.attn0",
    "mid_block.attentions.0": "mid.attn0",
    "up_blocks.0.attentions.0": "up1.attn0",
    "up_blocks.0.attentions.1": "up1.attn1",
}
LABELS = (1, 4, 4)  # one class, and the last, which is the null class where a network has one


def condition(program: str, arguments: dict) -> dict[str, np.ndarray]:
    """What a network is told beside the noisy image and t, by our names, images NCHW."""
    rng, told = np.random.default_rng(2), {}
    if arguments.get("class_embed_type") == "timestep":
        told["label"] = np.array([0, 3, 250.5], np.float32)
    elif arguments.get("class_embed_type") == "identity":
        told["label"] = rng.standard_normal((len(T), 4 * arguments["block_out_channels"][0])).astype(
            np.float32
        )
    elif arguments.get("num_classes") or arguments.get("num_class_embeds"):
        told["label"] = np.array(LABELS)
    side, joined = (
        arguments.get("large_size", SIDE),
        3 if program == "guided_sr" else arguments.get("in_channels", 3) - 3,
    )
    if joined:
        told["image"] = rng.standard_normal((len(T), joined, side, side)).astype(np.float32)
    return told


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
    for name, (program, arguments, beside) in (NETWORKS | CONDITIONED).items():
        config = written(program, arguments, beside)
        model = make(program, arguments)
        values = computed(model, program, arguments, beside)
        arrays |= {f"{name}/{key}": value for key, value in values.items()}
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        arrays |= {f"{name}/config": config, f"{name}/shapes": json.dumps(shapes)}
        if name == HOOKED:
            arrays |= {f"{name}/{key}": value for key, value in hooked(model, program, arguments).items()}
    arrays |= script32()
    np.savez_compressed(HERE / "pretrained.npz", **arrays)
    print((HERE / "pretrained.npz").stat().st_size, "bytes")


def hooked(model, program: str, arguments: dict) -> dict:
    """Outputs, `(component, row, ...)`, with each head of attention at zero, and the class: by hooks on what
    goes into a head's output projection and on what comes out of the table. `components`: names of ours."""
    import torch

    told = {name: torch.from_numpy(value) for name, value in condition(program, arguments).items()}
    x = np.random.default_rng(1).standard_normal((len(T), 3, SIDE, SIDE)).astype(np.float32)
    run = lambda: called(model, program, torch.from_numpy(x), torch.tensor(T), told).detach().numpy()
    outputs, names = [], []
    depth = arguments["attention_head_dim"]
    for path, ours in HEADS_OF.items():
        projection = model.get_submodule(f"{path}.to_out.0")
        for head in range(projection.in_features // depth):
            columns = slice(head * depth, (head + 1) * depth)

            def zeroed(module, inputs, columns=columns):
                changed = inputs[0].clone()
                changed[..., columns] = 0
                return (changed,)

            handle = projection.register_forward_pre_hook(zeroed)
            outputs.append(run())
            names.append(f"{ours}.head{head}")
            handle.remove()
    handle = model.class_embedding.register_forward_hook(lambda module, inputs, output: 0 * output)
    outputs.append(run())
    handle.remove()
    return {"hooked": np.stack(outputs), "components": json.dumps([*names, "class"])}


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
    if program == "diffusers":
        return importlib.import_module("diffusers").UNet2DModel(**arguments).eval()
    if program == "guided_sr":
        return super_resolution(arguments)
    if program == "guided":
        return importlib.import_module("guided_diffusion.script_util").create_model(**arguments).eval()
    package = {"guided_class": "guided_diffusion", "improved_class": "improved_diffusion"}[program]
    return importlib.import_module(f"{package}.unet").UNetModel(**arguments).eval()


def super_resolution(flags: dict):
    """As `sr_create_model` makes it, which knows larger images only."""
    kind = importlib.import_module("guided_diffusion.unet").SuperResModel
    return kind(
        image_size=flags["large_size"],
        in_channels=3,
        model_channels=flags["num_channels"],
        out_channels=6,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=(flags["large_size"] // int(flags["attention_resolutions"]),),
        channel_mult=tuple(map(int, flags["channel_mult"].split(","))),
        num_heads=flags["num_heads"],
        resblock_updown=flags["resblock_updown"],
    ).eval()


def written(program: str, arguments: dict, beside: dict) -> str:
    """What users keep beside the weights: YAML, JSON, or a command line."""
    if program == "ddim":
        parts = {"model": arguments, "data": {"image_size": SIDE, "channels": 3, "rescaled": True}}
        return json.dumps(parts | {"diffusion": {"beta_schedule": "linear", "num_diffusion_timesteps": 1000}})
    flags = arguments | beside
    if program == "diffusers":
        return json.dumps({"_class_name": "UNet2DModel"} | flags)
    if program.endswith("_class"):
        return json.dumps(flags)
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def computed(model, program: str, arguments: dict, beside: dict) -> dict[str, np.ndarray]:
    """Input, timesteps, output and gradient."""
    import torch

    state = draw({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    side = arguments.get("large_size", SIDE)
    x = np.random.default_rng(1).standard_normal((len(T), 3, side, side)).astype(np.float32)
    noisy = torch.from_numpy(x).requires_grad_()
    scale = 1000 / beside["diffusion_steps"] if beside.get("rescale_timesteps") else 1
    fed = torch.tensor(T) * scale if scale != 1 else torch.tensor(T)
    told = {name: torch.from_numpy(value) for name, value in condition(program, arguments).items()}
    output = called(model, program, noisy, fed, told)[:, :3]
    (output**2).sum().div(2).backward()
    return {"output": output.detach().numpy(), "gradient": noisy.grad.numpy()}


def called(model, program: str, x, t, told: dict):
    """The network's output, however its program takes conditions."""
    if program == "guided_sr":
        return model(x, t, low_res=told["image"])
    if program == "diffusers":
        import torch

        x = torch.cat([x, told["image"]], dim=1) if "image" in told else x
        return model(x, t, class_labels=told.get("label")).sample
    return model(x, t, *[told[name] for name in ("label",) if name in told])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("guided", "improved", "ddim"):
        parser.add_argument(name)
    main(**vars(parser.parse_args()))
