"""guided-diffusion's UNet (Dhariwal & Nichol 2021; P2 weighting, Choi et al. 2022), from its state dict.

Those programs keep no config beside their weights: a folder holds `model.safetensors` and a `config.json`
with the flags of the command line (`--num_channels 128` is `"num_channels": 128`), absent ones at the
defaults of their `script_util.py`. Where a network also outputs variances (`learn_sigma`), that half of its
last convolution is dropped: the other half does not depend on it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.models.pretrained import tensors
from mechdiff.models.pretrained.imported import Imported
from mechdiff.models.pretrained.options import checked
from mechdiff.models.unet import stages

WEIGHTS = "model.safetensors"
WHAT = "guided-diffusion"
DEFAULTS = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
ONLY = {
    "class_cond": (False,),
    "num_heads_upsample": (-1,),
    "noise_schedule": ("linear", "cosine"),
    "rescale_timesteps": (False,),
}
IGNORED = (  # of training and sampling
    *("use_checkpoint", "use_fp16", "timestep_respacing", "use_kl", "rescale_learned_sigmas"),
    *("p2_gamma", "p2_k"),
)
MULTIPLIERS = {  # where channel_mult is empty
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_dense": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
MODULES = {  # ours -> theirs, by the op of a stage
    "block": BLOCK,
    "attention": {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"},
    "downsample": {"conv": "op"},
    "upsample": {"conv": "conv"},
}
ENDS = {
    "conv_in/conv": "input_blocks.0.0",
    "conv_out/norm": "out.0",
    "conv_out/conv": "out.2",
    "time/dense1": "time_embed.0",
    "time/dense2": "time_embed.2",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def read(folder: Path, given: Mapping) -> Imported:
    """The model in `folder`, given its flags; errors as `interop.read`."""
    get = checked(given, DEFAULTS, ONLY, IGNORED, WHAT)
    unet, path = unet_config(get), folder / WEIGHTS
    state, dtype = tensors.load(path)
    state = split_attention(state, unet, get["use_new_attention_order"], path)
    notes = []
    if get["learn_sigma"]:
        for name in ("out.2.weight", "out.2.bias"):
            if name in state:
                state[name] = state[name][: unet.out_channels]
        notes.append("learned variances are dropped: sampling uses those of the posterior")
    params = tensors.to_params(state, names(unet), unet, path)
    scale = 1000 / get["diffusion_steps"]
    diffusion = DiffusionConfig(
        schedule=get["noise_schedule"],
        steps=get["diffusion_steps"],
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
    )
    return Imported(unet, diffusion, params, WHAT, dtype, tuple(notes))


def unet_config(get: Mapping) -> UNetConfig:
    """Our config of a network made with these flags (all of `DEFAULTS`)."""
    widths = tuple(get["num_channels"] * factor for factor in _multipliers(get))
    sides = [get["image_size"] // 2**level for level in range(len(widths))]
    asked = [int(side) for side in _listed(get["attention_resolutions"])]
    attends = tuple(side in asked for side in sides)
    here = (*attends[:-1], True)  # the middle always attends
    return UNetConfig(
        image_size=get["image_size"],
        widths=widths,
        blocks_per_level=get["num_res_blocks"],
        down_attention=attends,
        up_attention=attends,
        heads=tuple(_heads(get, width) if found else 1 for width, found in zip(widths, here)),
        norm_groups=32,
        norm_eps=1e-5,
        dropout=float(get["dropout"]),
        time_scale_shift=get["use_scale_shift_norm"],
        flip_sin_to_cos=True,
        frequency_shift=0.0,
        resample_blocks=get["resblock_updown"],
        prediction="sample" if get["predict_xstart"] else "epsilon",
    )


def names(unet: UNetConfig) -> dict[str, str]:
    """Our parameters, `stage/module/leaf`, and what guided-diffusion calls them."""
    places, found = stage_places(unet), {}
    ops = {stage.name: stage.op for stage in stages(unet)}
    for ours in tensors.parameter_shapes(unet):
        stage, module, leaf = ours.split("/")
        end = ENDS.get(f"{stage}/{module}")
        found[ours] = f"{end or f'{places[stage]}.{MODULES[ops[stage]][module]}'}.{LEAVES[leaf]}"
    return found


def stage_places(unet: UNetConfig) -> dict[str, str]:
    """Our stages and the dotted paths of theirs. They number what goes on the skip stack, what takes from it,
    and inside each the layers: attention follows its block, upsampling the last block of its level."""
    found, number, layer, group = {}, 0, 0, "input_blocks"
    for stage in stages(unet)[1:-1]:
        if stage.name == "mid.block0":
            group, number, layer = "middle_block", 0, -1
        opens = stage.op in ("block", "downsample") and stage.name.startswith("down")
        if stage.pop and group == "middle_block":
            group, number, opens = "output_blocks", -1, True
        if opens or stage.pop:
            number, layer = number + 1, 0
        else:
            layer += 1
        place = f"{layer}" if group == "middle_block" else f"{number}.{layer}"
        found[stage.name] = f"{group}.{place}"
    return found


def split_attention(state: tensors.State, unet: UNetConfig, new_order: bool, path: Path) -> dict:
    """`qkv` of every attention layer as q, k and v. Its rows are all queries, keys, values in the new order,
    and queries, keys, values of one head after the other in the old."""
    found, places = dict(state), stage_places(unet)
    for stage in stages(unet):
        for leaf in ("weight", "bias") if stage.op == "attention" else ():
            name = f"{places[stage.name]}.qkv.{leaf}"
            if name not in found:
                continue  # reported with all that is missing
            value = found.pop(name)
            if len(value) != 3 * stage.width:
                raise CheckpointError(f"{path}: {name} has {len(value)} rows, not {3 * stage.width}")
            heads = 1 if new_order else unet.heads[stage.level]
            rows = value.reshape(heads, 3, -1, *value.shape[1:])
            for i, kind in enumerate("qkv"):
                part = np.ascontiguousarray(rows[:, i]).reshape(stage.width, *value.shape[1:])
                found[f"{places[stage.name]}.{kind}.{leaf}"] = part
    return found


def _multipliers(get: Mapping) -> tuple[int, ...]:
    if get["channel_mult"]:
        return tuple(int(factor) for factor in _listed(get["channel_mult"]))
    if get["image_size"] not in MULTIPLIERS:
        raise ConfigError(f"{WHAT} option channel_mult is needed with image_size={get['image_size']}")
    return MULTIPLIERS[get["image_size"]]


def _heads(get: Mapping, width: int) -> int:
    return get["num_heads"] if get["num_head_channels"] == -1 else width // get["num_head_channels"]


def _listed(value: object) -> list:
    return value.split(",") if isinstance(value, str) else list(value)
