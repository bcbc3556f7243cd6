"""guided-diffusion's UNet (Dhariwal & Nichol 2021; P2 weighting, Choi et al. 2022) and its elder,
improved-diffusion's (Nichol & Dhariwal 2021), from a state dict and flags.

Those programs keep no config beside their weights: a folder holds `model.safetensors` and a JSON or YAML file
with the flags, or the command line itself (`flags.txt`). Two spellings are read: that of the scripts
(`num_channels`, attention at sides of the feature map) and that of the network's class (`model_channels`,
attention at factors of downsampling). Flags that are absent are read off the tensors where these tell
(`adm_tensors`), and else are the scripts' defaults, which a note names. Where a network also outputs
variances, that half of its last convolution is dropped: the other half does not depend on it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.errors import CheckpointError, ConfigError, shorten
from mechdiff.models.pretrained import states, tensors
from mechdiff.models.pretrained.adm_tensors import shapes_say
from mechdiff.models.pretrained.folders import Place
from mechdiff.models.pretrained.imported import Imported, Stated
from mechdiff.models.pretrained.options import (
    Option,
    Options,
    anything,
    boolean,
    choice,
    integer,
    listed,
    number,
    read_options,
)
from mechdiff.models.unet import stages

STEM = "model"
WEIGHTS = f"{STEM}.safetensors"
WHAT = "guided-diffusion"
DIALECTS = {"guided-diffusion": False, "improved-diffusion": True}  # what rescale_timesteps is where absent
WHOLE = integer(text=True)
HEADS = integer(text=True, also=(-1,))
BOOLEAN = boolean(text=True)
TABLE = {  # defaults of both programs' script_util.py; None: read off the tensors
    "image_size": Option(64, WHOLE),
    "in_channels": Option(None, WHOLE),
    "out_channels": Option(None, WHOLE),
    "num_channels": Option(None, WHOLE),
    "num_res_blocks": Option(None, listed(WHOLE, text=True)),
    "num_heads": Option(4, HEADS),
    "num_heads_upsample": Option(-1, HEADS),
    "num_head_channels": Option(-1, HEADS),
    "attention_resolutions": Option(None, listed(WHOLE, text=True, empty=True)),
    "channel_mult": Option("", listed(number(1e-9, text=True), text=True, also=("",))),
    "dropout": Option(0.0, number(0.0, text=True)),
    "class_cond": Option(False, BOOLEAN, (False,)),
    "num_classes": Option(None, anything(), (None,)),
    "use_scale_shift_norm": Option(None, BOOLEAN),
    "resblock_updown": Option(None, BOOLEAN),
    "conv_resample": Option(True, BOOLEAN),
    "dims": Option(2, WHOLE, (2,)),
    "use_new_attention_order": Option(False, BOOLEAN),
    "use_spatial_transformer": Option(False, BOOLEAN, (False,)),
    "learn_sigma": Option(None, BOOLEAN),
    "diffusion_steps": Option(1000, integer(2, text=True)),
    "noise_schedule": Option("linear", choice("linear", "cosine"), ("linear", "cosine")),
    "predict_xstart": Option(False, BOOLEAN),
    "model_mean_type": Option("epsilon", choice("epsilon"), ("epsilon", "start_x")),
    "rescale_timesteps": Option(None, BOOLEAN),
    "large_size": Option(None, anything(), (None,)),  # of super-resolution: conditioned by channels
    "small_size": Option(None, anything(), (None,)),
}
ALIASES = {"model_channels": "num_channels", "steps": "diffusion_steps"}
IGNORED = (  # of training, sampling, files and classifiers
    *("use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small", "model_var_type"),
    *("p2_gamma", "p2_k", "timestep_respacing", "use_ddim", "clip_denoised", "dynamic_threshold", "sampler"),
    *("lr", "lr_anneal_steps", "weight_decay", "batch_size", "microbatch", "ema_rate", "schedule_sampler"),
    *("log_interval", "save_interval", "resume_checkpoint", "fp16_scale_growth", "iterations", "anneal_lr"),
    *("num_samples", "num_workers", "eval_interval", "eta", "seed", "device", "gpu", "range_t", "n", "name"),
    *("(.*_)?(path|dir|root|file|name)", "classifier_.*", "data.*", "log_.*", "save_.*", "sample_.*"),
    *("eval_.*", "train_.*", "wandb.*"),
)
DECISIVE = ("diffusion_steps", "noise_schedule", "predict_xstart", "use_new_attention_order", "image_size")
ASKED = {"noise_schedule": "noise_schedule", "diffusion_steps": "noise_steps"}
MULTIPLIERS = {  # where channel_mult is empty; 32 is improved-diffusion's, 128 and 512 guided-diffusion's
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
COMMON = {"in_channels": 3}  # not worth a note
PROBE = "input_blocks.0.0.weight"
LAST = ("out.2.weight", "out.2.bias")
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


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of an ADM network, complete.

    Attributes:
      values: of every flag of `TABLE`; `widths`, `blocks` and `attends` per level.
      notes: what was read off the tensors, assumed, or passed over.
      assumed: `flag=value` of what no file says.
    """

    values: dict[str, Any]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def recognizes(config: Mapping[str, Any]) -> bool:
    """Whether a config is of this layout."""
    names = flattened(config).keys()
    return bool(names & {"num_channels", "model_channels", "num_res_blocks", "attention_resolutions"})


def read(place: Place, stated: Stated) -> Imported:
    """The model at `place`; errors as `pretrained.read`."""
    path, notes = states.weight_file(place.home, STEM, stated.weights)
    state, dtype = tensors.load(path)
    state, wrapping = states.unwrapped(state, PROBE, stated.weights, path)
    states.check_no_classes(state, path)
    get = flags(place.config, state, stated)
    unet = unet_config(get)
    state = split_attention(state, unet, get["use_new_attention_order"], path)
    notes = [*place.notes, *notes, *wrapping, *get.notes]
    if get["learn_sigma"]:
        state, note = states.without_variances(state, LAST, unet.out_channels)
        notes.append(note)
    params = tensors.to_params(state, names(unet), unet, path)
    scale = 1000 / get["diffusion_steps"]
    diffusion = DiffusionConfig(
        schedule=get["noise_schedule"],
        steps=get["diffusion_steps"],
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
    )
    return Imported(unet, diffusion, params, WHAT, dtype, tuple(notes), get.assumed)


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its sections (`model: ...`, `diffusion: ...`), whose options are flags all the same.

    Raises:
      ConfigError: an option that two sections set differently.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        section = value if isinstance(value, Mapping) and name not in TABLE else {name: value}
        for inner, item in section.items():
            if inner in flat and flat[inner] != item:
                raise ConfigError(f"{WHAT} option {shorten(inner)} is set twice, differently")
            flat[inner] = item
    return flat


def flags(config: Mapping[str, Any], state: tensors.State, stated: Stated) -> Flags:
    """All flags of a network: as the config says, as the tensors tell, as is stated, or by default.

    Raises:
      ConfigError: unknown flags, values that are not supported, contradictions, or what is left open and
        decides the network.
    """
    given, by_class = _spelled(flattened(config))
    get = read_options(given, TABLE, what=WHAT, ignored=IGNORED)
    get = _with_statements(get, stated)
    said = shapes_say(state)
    values = dict(get.values)
    read_off = []
    for name in ("num_channels", "in_channels", "learn_sigma", "use_scale_shift_norm", "resblock_updown"):
        if values[name] is None and name in said:
            values[name] = said[name]
            if said[name] != COMMON.get(name):
                read_off.append(f"{name}={said[name]}")
    values["in_channels"] = values["in_channels"] or 3
    values["use_scale_shift_norm"] = bool(values["use_scale_shift_norm"])
    values["resblock_updown"] = bool(values["resblock_updown"])
    values["learn_sigma"] = _learned_variances(values)
    if by_class and "num_heads" not in get.stated:
        values["num_heads"] = 1  # default of the class, not of the scripts
    values |= _levels(get, values, said, by_class, read_off)
    if (values["predict_xstart"], values["model_mean_type"]) == (False, "start_x"):
        values["predict_xstart"] = True
    assumed = _assumed(get, values, stated)
    values["rescale_timesteps"] = _rescaled(values, stated)
    notes = []
    if read_off:
        notes.append(f"flags read off the tensors: {', '.join(read_off)}")
    if assumed:
        notes.append(
            f"ASSUMED, as the scripts' defaults: {', '.join(assumed)}; write what is otherwise into the file"
        )
    if get.passed_over:
        notes.append(f"options without bearing here: {', '.join(get.passed_over)}")
    return Flags(values, tuple(notes), assumed)


def unet_config(get: Flags) -> UNetConfig:
    """Our config of a network made with these flags."""
    widths, attends = get["widths"], get["attends"]
    heads = tuple(_heads(get, get["num_heads"], width) for width in widths)
    here = (*attends[:-1], True)  # the middle always attends
    heads = tuple(count if attending else 1 for count, attending in zip(heads, here, strict=True))
    up_heads = ()
    if get["num_heads_upsample"] != -1 and get["num_head_channels"] == -1:
        up_heads = tuple(get["num_heads_upsample"] if a else 1 for a in attends)
    _check_heads(widths, here, heads, up_heads)
    blocks = get["blocks"]
    return UNetConfig(
        image_size=get["image_size"],
        in_channels=get["in_channels"],
        out_channels=get["in_channels"],
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
        prediction="sample" if get["predict_xstart"] else "epsilon",
        timestep_scale=1000 / get["diffusion_steps"] if get["rescale_timesteps"] else 1.0,
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
            if value.ndim == 0 or len(value) != 3 * stage.width:
                raise CheckpointError(f"{path}: {name} has shape {value.shape}, not {3 * stage.width} rows")
            heads = 1 if new_order else stage.heads
            rows = value.reshape(heads, 3, -1, *value.shape[1:])
            for i, kind in enumerate("qkv"):
                part = np.ascontiguousarray(rows[:, i]).reshape(stage.width, *value.shape[1:])
                found[f"{places[stage.name]}.{kind}.{leaf}"] = part
    return found


def _spelled(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The flags in the scripts' spelling, and whether they were the arguments of the network's class."""
    by_class, flat = "model_channels" in config, {}
    for name, value in config.items():
        ours = ALIASES.get(name, name) if isinstance(name, str) else name
        if ours in flat:
            raise ConfigError(f"{WHAT} options {shorten(name)} and {shorten(ours)} are the same; write one")
        flat[ours] = value
    return flat, by_class


def _with_statements(get: Options, stated: Stated) -> Options:
    """What is stated beside the flags, where they don't say otherwise."""
    values = dict(get.values)
    told = {name: getattr(stated, ours) for name, ours in ASKED.items()}
    told["predict_xstart"] = None if stated.prediction is None else stated.prediction == "sample"
    told["rescale_timesteps"] = stated.rescale_timesteps
    for name, value in told.items():
        if value is None:
            continue
        if name in get.stated and values[name] != value:
            raise ConfigError(
                f"stated {name}={shorten(value)} contradicts {WHAT} option {name}={values[name]}"
            )
        values[name] = value
    if stated.prediction == "v_prediction" or values["noise_schedule"] not in ("linear", "cosine"):
        raise ConfigError(f"{WHAT} networks predict epsilon or sample on linear or cosine noise levels")
    if stated.beta_start is not None or stated.beta_end is not None:
        raise ConfigError(
            f"{WHAT}'s betas follow from diffusion_steps; leave out --beta_start and --beta_end"
        )
    return dataclasses.replace(get, values=values)


def _learned_variances(values: Mapping[str, Any]) -> bool:
    """By `learn_sigma`, or by `out_channels` where the class's arguments are given."""
    inputs, outputs = values["in_channels"], values["out_channels"]
    if outputs is None:
        states.channels(WHAT, inputs, inputs)
        return bool(values["learn_sigma"])
    return states.channels(WHAT, inputs, outputs)


def _levels(
    get: Options, values: Mapping[str, Any], said: Mapping[str, Any], by_class: bool, read_off: list[str]
) -> dict[str, tuple]:
    """Widths, blocks and attention per level."""
    if values["num_channels"] is None:
        raise ConfigError(f"{WHAT} option num_channels is absent, and the tensors don't tell")
    factors = _multipliers(get, values, said, by_class, read_off)
    blocks = values["num_res_blocks"]
    if blocks is None:
        blocks = said.get("blocks")
        read_off.append(f"num_res_blocks={blocks if blocks is None else list(blocks)}")
    if blocks is None or len(blocks) not in (1, len(factors)):
        shown = "absent" if blocks is None else f"={list(blocks)}"
        raise ConfigError(
            f"{WHAT} option num_res_blocks {shown}: need one number, or one for each of {len(factors)} levels"
        )
    rates = _rates(get, values["image_size"], by_class)
    if rates is None and len(said.get("attends", ())) == len(factors):
        attends = said["attends"]
        sides = [values["image_size"] // 2**level for level, here in enumerate(attends) if here]
        read_off.append(f"attention at sides {sides}")
    elif rates is None:
        raise ConfigError(f"{WHAT} option attention_resolutions is absent, and the tensors don't tell")
    else:
        attends = tuple(2**level in rates for level in range(len(factors)))
    return {
        "widths": tuple(int(values["num_channels"] * factor) for factor in factors),
        "blocks": tuple(blocks) * (len(factors) if len(blocks) == 1 else 1),
        "attends": attends,
    }


def _multipliers(get, values, said, by_class: bool, read_off: list[str]) -> tuple[float, ...]:
    if values["channel_mult"] != "":
        return values["channel_mult"]
    told = tuple(width / values["num_channels"] for width in said.get("widths", ()))
    usual = (1, 2, 4, 8) if by_class else MULTIPLIERS.get(values["image_size"])
    if "image_size" not in get.stated and told and told != usual:
        shown = [float(factor) for factor in told]
        raise ConfigError(
            f"{WHAT} option image_size is absent, and the tensors' channel_mult={shown} is not that of "
            f"{values['image_size']}, its default; state it"
        )
    if usual is not None:
        return usual
    if not told:
        raise ConfigError(f"{WHAT} option channel_mult is needed with image_size={values['image_size']}")
    read_off.append(f"channel_mult={[float(factor) for factor in told]}")
    return told


def _rates(get: Options, side: int, by_class: bool) -> tuple[int, ...] | None:
    """Factors of downsampling at which there is attention; None: not said. Scripts take sides, the class
    takes factors."""
    asked = get["attention_resolutions"]
    if asked is None or by_class:
        return asked
    return tuple(side // resolution for resolution in asked)


def _rescaled(values: Mapping[str, Any], stated: Stated) -> bool:
    """Whether the network is fed t * 1000 / T. Without bearing for 1000 steps; else it must be known."""
    if values["diffusion_steps"] == 1000:
        return False
    if values["rescale_timesteps"] is not None:
        return values["rescale_timesteps"]
    if stated.dialect is not None:
        return DIALECTS[stated.dialect]
    raise ConfigError(
        f"{WHAT} option rescale_timesteps is absent, and with diffusion_steps={values['diffusion_steps']} it "
        "decides what the network is fed: write true (default of improved-diffusion) or false (of "
        "guided-diffusion), or give --rescale_timesteps or --dialect"
    )


def _assumed(get: Options, values: Mapping[str, Any], stated: Stated) -> tuple[str, ...]:
    """Flags that decide numbers, that nobody says and no tensor tells."""
    told = {ours for ours in ASKED if getattr(stated, ASKED[ours]) is not None}
    told |= {"predict_xstart"} if stated.prediction or "model_mean_type" in get.stated else set()
    names = [*DECISIVE, *(["num_heads"] if values["num_head_channels"] == -1 else [])]
    return states.summary({name: values[name] for name in names if name not in get.stated | told})


def _heads(get: Flags, count: int, width: int) -> int:
    depth = get["num_head_channels"]
    return count if depth == -1 else max(width // depth, 1)


def _check_heads(widths, here, heads, up_heads) -> None:
    for width, attending, *counts in zip(widths, here, heads, up_heads or heads, strict=True):
        for count in counts:
            if attending and (count < 1 or width % count):
                raise ConfigError(
                    f"{WHAT} options of heads (num_heads, num_heads_upsample, num_head_channels) make "
                    f"{count} of {width} channels; a whole number of channels each is needed"
                )
