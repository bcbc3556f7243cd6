"""How a `UNet2DModel` of diffusers is written in our words: its config, its state dict, its components.

Needs neither torch nor diffusers: a config is a dict, weights are NumPy arrays.
"""

import re
from collections.abc import Mapping

import numpy as np

from mechdiff.config import UNetConfig

MODULES = (  # theirs, ours
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down\1.block\2/"),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.", r"down\1.attn\2/"),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down\1.downsample/"),
    (r"mid_block\.resnets\.(\d+)\.", r"mid.block\1/"),
    (r"mid_block\.attentions\.(\d+)\.", r"mid.attn\1/"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", r"up\1.block\2/"),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.", r"up\1.attn\2/"),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up\1.upsample/"),
    (r"time_embedding\.linear_(\d)", r"time/dense\1"),
    (r"^conv_norm_out$", "conv_out/norm"),
    (r"^conv_(in|out)$", r"conv_\1/conv"),
    (r"time_emb_proj", "time_dense"),
    (r"conv_shortcut", "shortcut"),
    (r"group_norm", "norm"),
    (r"to_out\.0", "out"),
    (r"to_([qkv])", r"\1"),
)


def unet_config(theirs: Mapping) -> UNetConfig:
    """Our config of a `UNet2DModel` made with the arguments `theirs`; absent ones are diffusers' defaults."""
    get = {"attention_head_dim": 8, "norm_num_groups": 32, "layers_per_block": 2, **theirs}.get
    widths = tuple(get("block_out_channels"))
    heads = tuple(width // (get("attention_head_dim") or width) for width in widths)
    return UNetConfig(
        image_size=get("sample_size"),
        in_channels=get("in_channels", 3),
        out_channels=get("out_channels", 3),
        widths=widths,
        blocks_per_level=get("layers_per_block"),
        down_attention=tuple(kind.startswith("Attn") for kind in get("down_block_types")),
        up_attention=tuple(kind.startswith("Attn") for kind in reversed(get("up_block_types"))),
        mid_attention=get("add_attention", True),
        heads=tuple(max(1, count) for count in heads),  # levels without attention may be narrower than a head
        norm_groups=get("norm_num_groups"),
        norm_eps=get("norm_eps", 1e-5),
        time_scale_shift=get("resnet_time_scale_shift", "default") == "scale_shift",
        flip_sin_to_cos=get("flip_sin_to_cos", True),
        frequency_shift=float(get("freq_shift", 0)),
        down_padding=get("downsample_padding", 1),
        center_input=get("center_input_sample", False),
    )


def stage_name(theirs: str, levels: int) -> str:
    """A dotted module path of theirs as `stage/module`; decoder levels count from the top with us."""
    for pattern, ours in MODULES:
        theirs = re.sub(pattern, ours, theirs)
    return re.sub(r"^up(\d+)", lambda match: f"up{levels - 1 - int(match[1])}", theirs)


def component_name(theirs: str, levels: int) -> str:
    """Our name of a component, from their path of its block and the component's last word."""
    path, last = theirs.rsplit(".", 1)
    return f"{stage_name(path + '.', levels).split('/')[0]}.{last}"


def params(state: Mapping[str, np.ndarray], levels: int) -> dict:
    """Our parameters, stage -> module -> leaf, from a state dict."""
    found: dict = {}
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        stage, module = stage_name(path, levels).split("/")
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
        # (out, in, height, width) -> (height, width, in, out), and (out, in) -> (in, out)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        found.setdefault(stage, {}).setdefault(module, {})[leaf] = np.asarray(value, np.float32)
    return found
