"""Reads guided-diffusion's UNet (Dhariwal & Nichol 2021; P2 weighting, Choi et al. 2022) and its predecessor,
improved-diffusion's (Nichol & Dhariwal 2021), from a state dict and flags.

Those programs save no config with their weights: a folder holds `model.safetensors` and a JSON or YAML file
with the flags, or the command line itself (`flags.txt`). Two spellings are read: that of the scripts
(`num_channels`, attention at sides of the feature map) and that of the network's class (`model_channels`,
attention at factors of downsampling). Missing flags are inferred from the tensors where possible
(`tensors`); others get the scripts' defaults, which a note names. If a network also outputs variances,
that half of its last convolution is dropped: the other half does not depend on it.
"""

from collections.abc import Mapping
from typing import Any

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.adm.flags import Flags, flags
from mechdiff.models.pretrained.adm.names import names, split_attention
from mechdiff.models.pretrained.adm.options import ANCHOR, LAST, STATED, STEM, WHAT
from mechdiff.models.pretrained.files import states, tensors
from mechdiff.models.pretrained.files.buffers import check_buffers, without_buffers
from mechdiff.models.pretrained.files.configs import option_names
from mechdiff.models.pretrained.files.folders import ForeignFolder
from mechdiff.models.pretrained.imported import Imported, Stated

ASKED_AS = {
    "noise_schedule": "noise_schedule",
    "diffusion_steps": "noise_steps",
    "predict_xstart": "prediction",
}
__all__ = ["STATED", "WHAT", "read", "recognizes", "unet_config"]


def recognizes(config: Mapping[str, Any]) -> bool:
    """Whether a config is of this layout."""
    telling = {"num_channels", "model_channels", "num_res_blocks", "attention_resolutions"}
    return not option_names(config).isdisjoint(telling)


def read(source: ForeignFolder, stated: Stated) -> Imported:
    """The model in the folder `source`; errors as `pretrained.read`."""
    path, notes = states.weight_file(source.home, STEM, stated.weights)
    state, dtype = tensors.load(path)
    state, tables = without_buffers(state)
    state, wrapping = states.unwrapped(state, ANCHOR, stated.weights, path)
    get = flags(source.config, state, stated, source.text)
    unet = unet_config(get)
    state = split_attention(state, unet, get["use_new_attention_order"], path)
    diffusion = noise_levels(get)
    notes = [*source.notes, *notes, *wrapping, *get.notes, *check_buffers(tables, diffusion, path)]
    state = conditioning.condition_last(state, ANCHOR, get["channels"])
    if get["channels"].variances:
        state, note = states.without_variances(state, LAST, unet.out_channels)
        notes.append(note)
    params = tensors.to_params(state, names(unet), unet, path)
    asks = states.levels_asked("its flags say nothing of diffusion", _open(source, get, stated))
    return Imported(unet, diffusion, params, WHAT, dtype, tuple(notes), get.assumed, asks)


def noise_levels(get: Flags) -> DiffusionConfig:
    """The noise levels of these flags; ConfigError where betas of a linear schedule reach 1."""
    steps, schedule = get["diffusion_steps"], get["noise_schedule"]
    if schedule == "cosine":
        return DiffusionConfig(schedule=schedule, steps=steps)
    start, end = get["betas"] or (1000 / steps * 1e-4, 1000 / steps * 0.02)
    if end >= 1 and not get["betas"]:
        raise ConfigError(
            f"{WHAT} option diffusion_steps={steps} makes linear betas up to {end:.3g}, where they must be "
            "less than 1; 21 steps are the fewest"
        )
    return DiffusionConfig(schedule=schedule, steps=steps, beta_start=start, beta_end=end)


def _open(source: ForeignFolder, get: Flags, stated: Stated) -> tuple[str, ...]:
    """`option=value` of the noise levels and the prediction, if none of them is known. A command, or a
    dialect that is stated, gives what it leaves out the program's defaults."""
    assumed = {option.partition("=")[0] for option in get.assumed}
    if stated.dialect or source.runs or not assumed >= ASKED_AS.keys():
        return ()
    return states.summary({ours: get[theirs] or "epsilon" for theirs, ours in ASKED_AS.items()})


def unet_config(get: Flags) -> UNetConfig:
    """The UNet configuration of a network made with these flags."""
    widths, attends = get["widths"], get["attends"]
    heads = tuple(_heads(get, get["num_heads"], width) for width in widths)
    with_middle = (*attends[:-1], True)  # the middle always attends
    heads = tuple(count if attending else 1 for count, attending in zip(heads, with_middle, strict=True))
    up_heads = ()
    if get["num_heads_upsample"] != -1 and get["num_head_channels"] == -1:
        up_heads = tuple(get["num_heads_upsample"] if a else 1 for a in attends)
    _check_heads(get, with_middle, heads, up_heads)
    blocks = get["blocks"]
    return UNetConfig(
        image_size=get["image_size"],
        in_channels=get["channels"].image,
        out_channels=get["channels"].image,
        condition_channels=get["channels"].condition,
        widths=widths,
        blocks_per_level=blocks[0],
        level_blocks=() if len(set(blocks)) == 1 else blocks,
        down_attention=attends,
        up_attention=attends,
        heads=heads,
        up_heads=() if up_heads == heads else up_heads,
        norm_groups=32,
        norm_eps=1e-5,
        dropout=get["dropout"],
        time_scale_shift=get["use_scale_shift_norm"],
        time_features=0 if get["num_channels"] == widths[0] else get["num_channels"],
        flip_sin_to_cos=True,
        frequency_shift=0.0,
        resample_conv=get["conv_resample"],
        resample_blocks=get["resblock_updown"],
        prediction=get["prediction"],
        timestep_scale=1000 / get["diffusion_steps"] if get["rescale_timesteps"] else 1.0,
        **get["class_fields"],
    )


def _heads(get: Flags, count: int, width: int) -> int:
    """Heads of a level; 1 for a level that is narrower than a head (and so has no attention)."""
    depth = get["num_head_channels"]
    return count if depth == -1 else max(width // depth, 1)


def _check_heads(get: Flags, here: tuple[bool, ...], heads: tuple, up_heads: tuple) -> None:
    depth = get["num_head_channels"]
    for width, attending, *counts in zip(get["widths"], here, heads, up_heads or heads, strict=True):
        if attending and depth != -1 and width % depth:
            raise ConfigError(f"{WHAT} option num_head_channels={depth} does not divide {width} channels")
        for count in counts:
            if attending and (count < 1 or width % count):
                raise ConfigError(
                    f"{WHAT} options of heads (num_heads, num_heads_upsample, num_head_channels) make "
                    f"{count} of {width} channels; a whole number of channels each is needed"
                )
