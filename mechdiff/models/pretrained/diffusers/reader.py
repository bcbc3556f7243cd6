"""`UNet2DModel` folders of diffusers: names of tensors, reading and writing."""

import dataclasses
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.core.types import PyTree
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.diffusers import schedulers
from mechdiff.models.pretrained.diffusers.config import WHAT, unet_config
from mechdiff.models.pretrained.diffusers.written import options
from mechdiff.models.pretrained.files import states, tensors
from mechdiff.models.pretrained.files.buffers import check_buffers, without_buffers
from mechdiff.models.pretrained.files.folders import ForeignFolder
from mechdiff.models.pretrained.imported import Imported, Stated
from mechdiff.models.stages import StageName, stages
from mechdiff.storage import files

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
STATED = ("weights", "noise_schedule", "noise_steps", "beta_start", "beta_end", "prediction", "condition")
STATED += ("null_class",)
TELLING = "block_out_channels"  # an option of diffusers' networks alone, should their class be absent

MODULES = {  # ours -> theirs, inside a stage
    "time_dense": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before 0.13
MODULE_LISTS = {
    "block": "resnets",
    "attn": "attentions",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}
LABELS = ("class_embedding.weight", "class_embedding.linear_1.weight")
LAST = ("conv_out.weight", "conv_out.bias")


def read(source: ForeignFolder, stated: Stated) -> Imported:
    """The model in the folder `source`; errors as `pretrained.read`."""
    scheduler = schedulers.read(source.scheduler, stated)
    unet = unet_config(source.config, scheduler.prediction)
    split = conditioning.channels(WHAT, unet.in_channels, unet.out_channels, stated.condition)
    fields = {"in_channels": split.image, "out_channels": split.image, "condition_channels": split.condition}
    fields |= conditioning.classes(unet.classes, stated.null_class, WHAT)
    unet = dataclasses.replace(unet, sample_clip=scheduler.clip, **fields)
    path, notes = states.weight_file(source.home, STEM, stated.weights)
    state, dtype = tensors.load(path)
    state, tables = without_buffers(modern(state, path))
    state, more = states.unwrapped(state, "conv_in.weight", stated.weights, path)
    if not unet.takes_labels:
        conditioning.check_told(state, LABELS, path, "write num_class_embeds or class_embed_type")
    state = conditioning.condition_last(state, "conv_in.weight", split)
    notes = [*source.notes, *notes, *more, *scheduler.notes]
    notes += check_buffers(tables, scheduler.diffusion, path)
    if split.variances:
        state, note = states.without_variances(state, LAST, unet.in_channels)
        notes.append(note)
    elif scheduler.learned_variances:
        raise ConfigError(
            f"scheduler option variance_type says that variances are learned, but {WHAT} has "
            f"out_channels={split.image}, not {2 * split.image}"
        )
    params = tensors.to_params(state, names(unet), unet, path)
    facts = {"notes": tuple(notes), "assumed": scheduler.assumed, "asks": scheduler.asks}
    return Imported(unet, scheduler.diffusion, params, "diffusers", dtype, **facts)


def write_diffusers(folder: Path | str, unet: UNetConfig, diffusion: DiffusionConfig, params: PyTree) -> Path:
    """Writes a model as a folder for `UNet2DModel.from_pretrained` and `DDPMScheduler.from_pretrained`.

    Numbers keep the type they have in `params`; reading the folder gives them back bitwise.

    Raises:
      ConfigError: the network is of a kind that `UNet2DModel` has no options for.
    """
    folder, config = Path(folder), options(unet)
    arrays = tensors.from_params(params, names(unet))
    files.ensure_writable(folder)
    files.write_atomic(folder / WEIGHTS, save(arrays, {"format": "pt"}))
    scheduler = schedulers.write(diffusion, unet.prediction, unet.sample_clip)
    files.write_json(folder / "scheduler_config.json", scheduler)
    files.write_json(folder / "config.json", config)
    return folder


def names(unet: UNetConfig) -> dict[str, str]:
    """Our parameters, `stage/module/leaf`, and what diffusers calls them."""
    module_paths, table = stage_module_paths(unet), {}
    for ours in tensors.parameter_shapes(unet):
        stage, module, leaf = ours.split("/")
        if stage == "time":
            module_path = f"time_embedding.linear_{module[-1]}"
        elif stage == "class":
            module_path = "class_embedding" + ("" if module == "table" else f".linear_{module[-1]}")
        elif stage in ("conv_in", "conv_out"):
            module_path = "conv_norm_out" if module == "norm" else stage
        else:
            module_path = f"{module_paths[stage]}.{MODULES.get(module, module)}"
        table[ours] = f"{module_path}.{LEAVES[leaf]}"
    return table


def stage_module_paths(unet: UNetConfig) -> dict[str, str]:
    """Our stages and the dotted paths of theirs; decoder levels count from the bottom with them."""
    last = len(unet.widths) - 1
    return {stage.name: _module_path(stage.parsed_name, last) for stage in stages(unet) if stage.parsed_name}


def modern(state: tensors.State, where: Path) -> dict:
    """A state dict with the names that attention has had since diffusers 0.13.

    Raises:
      CheckpointError: a tensor is there under both names, with different numbers.
    """
    renamed = {}
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        stem, _, module = path.rpartition(".")
        old = OLD_NAMES.get(module) if ".attentions." in name else None
        new = f"{stem}.{old}.{leaf}" if old else name
        if not np.array_equal(renamed.setdefault(new, value), value):
            raise CheckpointError(f"{where} has {new} twice, differently, by its old name too; delete one")
    return renamed


def _module_path(name: StageName, last: int) -> str:
    match name.side:
        case "down":
            block = f"down_blocks.{name.level}"
        case "mid":
            block = "mid_block"
        case _:
            block = f"up_blocks.{last - int(name.level)}"
    return f"{block}.{MODULE_LISTS[name.module]}.{name.number}".rstrip(".")
