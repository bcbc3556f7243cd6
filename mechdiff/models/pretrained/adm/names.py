"""Names of an ADM network's tensors, and the splitting of its attention's `qkv` tensors."""

from pathlib import Path

import numpy as np

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import CheckpointError
from mechdiff.models.pretrained.files import tensors
from mechdiff.models.stages import stages

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
    "class/table": "label_emb",
    "time/dense1": "time_embed.0",
    "time/dense2": "time_embed.2",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}


def names(unet: UNetConfig) -> dict[str, str]:
    """Parameter `stage/module/leaf` of this package -> name of guided-diffusion's tensor."""
    module_paths, table = stage_module_paths(unet), {}
    ops = {stage.name: stage.op for stage in stages(unet)}
    for ours in tensors.parameter_shapes(unet):
        stage, module, leaf = ours.split("/")
        end = ENDS.get(f"{stage}/{module}")
        table[ours] = f"{end or f'{module_paths[stage]}.{MODULES[ops[stage]][module]}'}.{LEAVES[leaf]}"
    return table


def stage_module_paths(unet: UNetConfig) -> dict[str, str]:
    """Stage of this package -> dotted path of guided-diffusion's module.

    They number encoder steps that push a skip tensor, decoder steps that take one, and the layers in each:
    attention follows its block, upsampling the last block of its level.
    """
    module_paths, number, layer, group = {}, 0, 0, "input_blocks"
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
        within = f"{layer}" if group == "middle_block" else f"{number}.{layer}"
        module_paths[stage.name] = f"{group}.{within}"
    return module_paths


def split_attention(state: tensors.State, unet: UNetConfig, new_order: bool, path: Path) -> dict:
    """The state with `qkv` of every attention layer split into q, k and v.

    In the new order its rows are all queries, then keys, then values; in the old order queries, keys and
    values of one head after the other.

    Raises:
      CheckpointError: a `qkv` of another shape than the config implies.
    """
    split, module_paths = dict(state), stage_module_paths(unet)
    for stage in stages(unet):
        for leaf in ("weight", "bias") if stage.op == "attention" else ():
            name = f"{module_paths[stage.name]}.qkv.{leaf}"
            if name not in split:
                continue  # reported with all that is missing
            value = split.pop(name)
            if value.ndim == 0 or len(value) != 3 * stage.width:
                raise CheckpointError(f"{path}: {name} has shape {value.shape}, not {3 * stage.width} rows")
            heads = 1 if new_order else stage.heads
            rows = value.reshape(heads, 3, -1, *value.shape[1:])
            for i, letter in enumerate("qkv"):
                part = np.ascontiguousarray(rows[:, i]).reshape(stage.width, *value.shape[1:])
                split[f"{module_paths[stage.name]}.{letter}.{leaf}"] = part
    return split
