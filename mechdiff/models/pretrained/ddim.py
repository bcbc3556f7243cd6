"""Ho et al. 2020's network in its PyTorch names: ermongroup/ddim, pesser/pytorch_diffusion, SDEdit.

A folder holds `model.safetensors` and the nested config of those programs (`config.yaml` with sections
`data`, `model` and `diffusion`), or the arguments of the network's class alone (`resolution`, `ch`, ...).
The architecture is that of `google/ddpm-*` in diffusers; the names of tensors are others, and decoder levels
count from the top.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechdiff.core.config import MAX_STEPS, DiffusionConfig, UNetConfig
from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.diffusers import betas
from mechdiff.models.pretrained.diffusers.schedulers import from_betas
from mechdiff.models.pretrained.files import states, tensors
from mechdiff.models.pretrained.files.buffers import check_buffers, without_buffers
from mechdiff.models.pretrained.files.folders import ForeignFolder
from mechdiff.models.pretrained.files.options import (
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
from mechdiff.models.pretrained.imported import Imported, Stated
from mechdiff.models.stages import StageName, stages

WHAT = "ddim"
STATED = ("weights", "noise_schedule", "noise_steps", "beta_start", "beta_end", "prediction", "condition")
SIDES = listed(integer(text=True), text=True, empty=True)
MODEL = {
    "type": Option("simple", anything(), ("simple", "bayesian")),
    "resolution": Option(None, integer(text=True)),
    "in_channels": Option(3, integer(text=True)),
    "out_ch": Option(3, integer(text=True)),
    "ch": Option(None, integer(text=True)),
    "ch_mult": Option((1, 2, 4, 8), listed(integer(text=True), text=True)),
    "num_res_blocks": Option(None, integer(text=True)),
    "attn_resolutions": Option((), SIDES),
    "dropout": Option(0.0, number(0.0, text=True)),
    "resamp_with_conv": Option(True, boolean(text=True)),
}
DATA = {
    "image_size": Option(None, integer(text=True)),
    "channels": Option(None, integer(text=True)),
    "rescaled": Option(True, boolean(text=True), (True,)),
    "logit_transform": Option(False, boolean(text=True), (False,)),
}
DIFFUSION = {
    "beta_schedule": Option("linear", choice("linear"), ("linear", "quad", "const", "sigmoid")),
    "beta_start": Option(1e-4, number(0.0, text=True)),
    "beta_end": Option(0.02, number(0.0, text=True)),
    "num_diffusion_timesteps": Option(1000, integer(2, MAX_STEPS, text=True)),
}
IGNORED_MODEL = ("var_type", "ema", "ema_rate", "conv_shortcut", "use_timestep")
IGNORED_SECTIONS = ("training", "sampling", "optim", "optimizer", "testing", "eval", "device", "seed")
IGNORED_DATA = ("dataset", "category", ".*dequantization", "random_flip", "num_workers", ".*(dir|path|root)")
THEIRS = {"quad": "scaled_linear", "linear": "linear", "scaled_linear": "scaled_linear"}
ASKED = {"beta_schedule": "noise_schedule", "num_diffusion_timesteps": "noise_steps"}
ASKED |= {"beta_start": "beta_start", "beta_end": "beta_end"}
ANCHOR = "temb.dense.0.weight"
MODULES = {  # ours -> theirs, inside a stage
    "time_dense": "temb_proj",
    "shortcut": "nin_shortcut",
    "out": "proj_out",
}
ENDS = {
    "conv_in/conv": "conv_in",
    "conv_out/norm": "norm_out",
    "conv_out/conv": "conv_out",
    "time/dense1": "temb.dense.0",
    "time/dense2": "temb.dense.1",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def recognizes(config: Mapping[str, Any]) -> bool:
    """Whether a config is of this layout: nested, or the arguments of the network's class."""
    model = config.get("model")
    return "ch" in config or (isinstance(model, Mapping) and "ch" in model)


def read(source: ForeignFolder, stated: Stated) -> Imported:
    """The model in the folder `source`; errors as `pretrained.read`."""
    model, data, diffusion, passed_over = _sections(source.config)
    split = conditioning.channels(WHAT, model["in_channels"], model["out_ch"], stated.condition)
    channels = {
        "in_channels": split.image,
        "out_channels": split.image,
        "condition_channels": split.condition,
    }
    unet = dataclasses.replace(unet_config(model, data), **channels)
    levels, notes = _noise_levels(diffusion, stated)
    path, more = states.weight_file(source.home, "model", stated.weights)
    state, dtype = tensors.load(path)
    state, tables = without_buffers(state)
    state, wrapping = states.unwrapped(state, ANCHOR, stated.weights, path)
    state.pop("logvar", None)  # of type bayesian; no input of the network
    notes = [*source.notes, *more, *wrapping, *notes, *check_buffers(tables, levels, path)]
    if passed_over:
        notes.append(f"options without bearing here: {', '.join(map(str, passed_over))}")
    state = conditioning.condition_last(state, "conv_in.weight", split)
    if split.variances:
        state, note = states.without_variances(state, ("conv_out.weight", "conv_out.bias"), unet.out_channels)
        notes.append(note)
    params = tensors.to_params(state, names(unet), unet, path)
    unet = dataclasses.replace(unet, prediction=stated.prediction or "epsilon")
    assumed = _assumed(diffusion, stated)
    asks = states.levels_asked("its config has no (whole) section diffusion", assumed)
    return Imported(unet, levels, params, WHAT, dtype, tuple(notes), assumed, asks)


def unet_config(model: Options, data: Options) -> UNetConfig:
    """Our config of a network made with these options.

    Raises:
      ConfigError: an option that decides the network is absent, contradicts another, or is not read.
    """
    for name in ("ch", "num_res_blocks"):
        if model[name] is None:
            raise ConfigError(f"{WHAT} option model.{name} is absent; its value decides the network")
    size = model["resolution"] or data["image_size"]
    if size is None:
        raise ConfigError(f"{WHAT} option data.image_size is absent; write the side of the images")
    if model["resolution"] and data["image_size"] not in (None, model["resolution"]):
        raise ConfigError(f"{WHAT} options resolution={size} and image_size={data['image_size']} differ")
    if model["ch_mult"][0] != 1:
        raise ConfigError(f"{WHAT} option ch_mult={list(model['ch_mult'])}: only lists that begin with 1")
    attends = tuple(size // 2**level in model["attn_resolutions"] for level in range(len(model["ch_mult"])))
    return UNetConfig(
        image_size=size,
        in_channels=model["in_channels"],
        out_channels=model["in_channels"],
        widths=tuple(model["ch"] * factor for factor in model["ch_mult"]),
        blocks_per_level=model["num_res_blocks"],
        down_attention=attends,
        up_attention=attends,
        heads=(1,) * len(attends),
        norm_groups=32,
        norm_eps=1e-6,
        dropout=model["dropout"],
        flip_sin_to_cos=False,
        frequency_shift=1.0,
        down_padding=0,
        resample_conv=model["resamp_with_conv"],
    )


def names(unet: UNetConfig) -> dict[str, str]:
    """Our parameters, `stage/module/leaf`, and what these programs call them."""
    named = [stage for stage in stages(unet) if stage.parsed_name]
    module_paths = {stage.name: _module_path(stage.parsed_name) for stage in named}
    table = {}
    for ours in tensors.parameter_shapes(unet):
        stage, module, leaf = ours.split("/")
        module_path = ENDS.get(f"{stage}/{module}") or f"{module_paths[stage]}.{MODULES.get(module, module)}"
        table[ours] = f"{module_path}.{LEAVES[leaf]}"
    return table


def _module_path(name: StageName) -> str:
    """The dotted path of a stage: `up2.attn1` is `up.2.attn.1`, `mid.block1` is `mid.block_2`."""
    if name.side == "mid":
        return f"mid.{name.module}_{int(name.number) + 1}"
    return ".".join(filter(None, name))


def _sections(config: Mapping[str, Any]) -> tuple[Options, Options, Options, list[str]]:
    """Sections `model`, `data` and `diffusion`, checked, and what was passed over."""
    nested = "ch" not in config
    parts = {name: config.get(name, {}) if nested else {} for name in ("model", "data", "diffusion")}
    parts = parts if nested else {**parts, "model": config}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise ConfigError(f"{WHAT} section {name}={shorten(part)} is not a mapping of names to values")
    skipped = [name for name in config if nested and name not in parts]
    for name in skipped:
        if name not in IGNORED_SECTIONS:
            raise ConfigError(f"unknown section of {WHAT} {shorten(name)}; known: model, data, diffusion")
    model = read_options(parts["model"], MODEL, what=f"{WHAT} model", ignored=IGNORED_MODEL)
    data = read_options(parts["data"], DATA, what=f"{WHAT} data", ignored=IGNORED_DATA)
    diffusion = read_options(parts["diffusion"], DIFFUSION, what=f"{WHAT} diffusion")
    return model, data, diffusion, [*model.passed_over, *data.passed_over, *skipped]


def _noise_levels(get: Options, stated: Stated) -> tuple[DiffusionConfig, list[str]]:
    values = dict(get.values)
    for name, ours in ASKED.items():
        value = getattr(stated, ours)
        if value is None:
            continue
        theirs = THEIRS.get(values[name], values[name]) if name == "beta_schedule" else values[name]
        if name in get.stated and theirs != value:
            raise ConfigError(
                f"--{ours}={shorten(value)} contradicts {WHAT} option {name}={shorten(values[name])}"
            )
        values[name] = value
    steps, start, end = values["num_diffusion_timesteps"], values["beta_start"], values["beta_end"]
    assumed = _assumed(get, stated)
    note = (
        f"ASSUMED, as no section diffusion says otherwise: {', '.join(assumed)}; state them in it or by flags"
    )
    notes = [note] if assumed else []
    match values["beta_schedule"]:
        case "const":
            return from_betas(np.full(steps, end)), notes
        case "sigmoid":
            return from_betas(betas.sigmoid(steps, start, end)), notes
        case "cosine":
            return DiffusionConfig(schedule="cosine", steps=steps), notes
        case named:
            schedule = THEIRS[named]
            return DiffusionConfig(schedule=schedule, steps=steps, beta_start=start, beta_end=end), notes


def _assumed(get: Options, stated: Stated) -> tuple[str, ...]:
    schedule = stated.noise_schedule or get["beta_schedule"]
    unused = ("beta_start", "beta_end") if schedule == "cosine" else ()
    open_ = {ours: get[name] for name, ours in ASKED.items() if name not in {*get.stated, *unused}}
    return states.summary({ours: value for ours, value in open_.items() if getattr(stated, ours) is None})
