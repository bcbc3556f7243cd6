"""EDM's networks (NVlabs/edm) under its own preconditioning: DhariwalUNet, and SongUNet without FIR.

A folder holds `model.safetensors` (see the README for the line that takes it out of a pickle one trusts) and
a config.json with `sigma_data` (0.5 in all of EDM's own) and `precond` (EDM, one of the four that the same
networks were trained with: the tensors don't tell), or training_options.json of EDM's trainer, which tells
both. All else is inferred from names and shapes; a config that contradicts these is refused.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechdiff.core.config import MAX_STEPS, DiffusionConfig
from mechdiff.core.errors import CheckpointError, ConfigError, shorten
from mechdiff.core.types import PyTree
from mechdiff.diffusion.parameterization import Parameterization
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.pretrained.conditioning import IMAGE_CHANNELS
from mechdiff.models.pretrained.diffusers.schedulers import from_betas
from mechdiff.models.pretrained.edm.init import initializer
from mechdiff.models.pretrained.edm.network import Network
from mechdiff.models.pretrained.files import states, tensors
from mechdiff.models.pretrained.files.fit import check_fit, misfit
from mechdiff.models.pretrained.files.folders import ForeignFolder
from mechdiff.models.pretrained.files.options import (
    Option,
    anything,
    choice,
    integer,
    listed,
    number,
    optional,
    read_options,
)
from mechdiff.models.pretrained.imported import ImportedFunction, Stated
from mechdiff.models.traced import TracedDenoiser, wrap

WHAT = "edm"
STATED = ("weights",)
WHOLE = integer(text=True)
KINDS = ("DhariwalUNet", "SongUNet")
ARGUMENTS, CLASS, PRECOND = "network_kwargs", "class_name", "EDMPrecond"  # in training_options.json
SIGMA_DATA = 0.5  # default of EDMPrecond
UNBOUNDED = {"sigma_min": 0.0, "sigma_max": math.inf}  # its defaults: any noise level
TOLD = {  # by tensors too
    "img_resolution": Option(None, optional(WHOLE)),
    "img_channels": Option(None, optional(WHOLE)),
    "label_dim": Option(None, optional(integer(0, text=True))),
    "augment_dim": Option(None, optional(integer(0, text=True))),
    "model_type": Option(None, choice(*KINDS), (None, *KINDS)),
    "model_channels": Option(None, optional(WHOLE)),
    "channel_mult": Option(None, optional(listed(WHOLE, text=True))),
    "channel_mult_emb": Option(None, optional(WHOLE)),
    "channel_mult_noise": Option(None, optional(WHOLE)),
    "num_blocks": Option(None, optional(WHOLE)),
    "attn_resolutions": Option(None, optional(listed(WHOLE, text=True, empty=True))),
}
TABLE = {
    "sigma_data": Option(None, number(1e-6, text=True)),
    "sigma_min": Option(0.002, number(1e-6, text=True)),
    "sigma_max": Option(80.0, number(1e-6, text=True)),
    "rho": Option(7.0, number(1.0, text=True)),
    "steps": Option(1000, integer(2, MAX_STEPS, text=True)),
    "precond": Option(None, anything(), (None, "edm", PRECOND)),
    "embedding_type": Option(None, anything(), (None, "positional")),
    "encoder_type": Option(None, anything(), (None, "standard")),
    "decoder_type": Option(None, anything(), (None, "standard")),
    "resample_filter": Option(None, optional(listed(number(text=True), text=True)), (None, (1, 1))),
    **TOLD,
}
UNBIASED = {"DhariwalUNet": r"^map_label\.weight$", "SongUNet": "$^"}
IGNORED = ("use_fp16", "dropout", "label_dropout")
TELLING = ("sigma_data", "img_resolution")


def recognizes(config: Mapping[str, Any]) -> bool:
    """Whether a config is of EDM's network, and not of consistency training, which has the same words."""
    if _trained_class(config):
        return True
    return any(name in config for name in TELLING) and "training_mode" not in config


def _trained_class(config: Mapping[str, Any]) -> str:
    """The class of the network in the options of EDM's trainer, such as `EDMPrecond`; else empty."""
    arguments = config.get(ARGUMENTS)
    name = arguments.get(CLASS) if isinstance(arguments, Mapping) else None
    kind = name.rpartition(".")[2] if isinstance(name, str) else ""
    return kind if kind.endswith("Precond") or str(name).startswith("training.") else ""


def _options_of_network(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config, or the arguments of its network where it is that of EDM's trainer; without bounds of noise
    levels that bound none."""
    if kind := _trained_class(config):
        arguments = {name: value for name, value in config[ARGUMENTS].items() if name != CLASS}
        usual = {"sigma_data": SIGMA_DATA} if kind == PRECOND else {}
        config = usual | arguments | {"precond": kind}
    return {name: value for name, value in config.items() if not _is_unbounded(name, value)}


def _is_unbounded(name: str, value: Any) -> bool:
    return name in UNBOUNDED and type(value) in (int, float) and value == UNBOUNDED[name]


def read(source: ForeignFolder, stated: Stated) -> ImportedFunction:
    """The model in the folder `source`; errors as `pretrained.read`."""
    get = read_options(_options_of_network(source.config), TABLE, what=WHAT, ignored=IGNORED)
    if get["sigma_data"] is None:
        raise ConfigError(f"{WHAT} option sigma_data is absent; write it (0.5 in EDM's own networks)")
    if get["precond"] is None:
        raise ConfigError(
            f"{WHAT} option precond is absent; write edm if the network was trained in EDMPrecond "
            "(the same networks under VP, VE and iDDPM preconditioning are not read)"
        )
    path, notes = states.weight_file(source.home, "model", stated.weights)
    state, dtype = tensors.load(path)
    state, wrapping = states.unwrapped(state, "map_layer0.weight", stated.weights, path)
    state = _without_filters(state, path)
    dropped = state.pop("map_augment.weight", None)
    with misfit(path, WHAT):
        options = _options(state, path) | {"sigma_data": get["sigma_data"]}
        told = _told(state, options) | {"augment_dim": 0 if dropped is None else dropped.shape[1]}
    if options["channels"] not in IMAGE_CHANNELS:
        raise ConfigError(
            f"{WHAT}: {options['channels']} channels; images have 1 or 3 (latents are not images)"
        )
    for name, value in told.items():
        stated = _of_sides(get[name], options["sides"]) if name == "attn_resolutions" else get[name]
        if stated not in (None, value):
            raise ConfigError(
                f"{WHAT} option {name}={shorten(get[name])}, tensors say {value}; if these are the right "
                "tensors, leave it out"
            )
    check_fit(_network(options), state, _example(options), path, WHAT, UNBIASED[options["kind"]])
    notes = [*source.notes, *notes, *wrapping]
    if dropped is not None:
        notes.append("its input of augmentations is dropped: examined on images that are not augmented")
    assumed = states.summary(
        {name: get[name] for name in ("sigma_min", "sigma_max", "rho", "steps") if name not in get.stated}
    )
    notes += (
        [f"ASSUMED noise levels, which networks of EDM leave open: {', '.join(assumed)}"] if assumed else []
    )
    if get.passed_over:
        notes.append(f"options without bearing here: {', '.join(get.passed_over)}")
    low, high, rho = get["sigma_min"], get["sigma_max"], get["rho"]
    diffusion = karras_levels(np.linspace(0, 1, get["steps"]), low, high, rho)
    return ImportedFunction(WHAT, options, state, diffusion, dtype, tuple(notes), assumed)


def karras_levels(fractions: np.ndarray, low: float, high: float, rho: float) -> DiffusionConfig:
    """Noise levels of Karras et al. 2022, eq. 5: `fractions` of the range, in [0, 1]; 0 is the lowest.

    Raises:
      ConfigError: `low` is not below `high`.
    """
    if low >= high:
        raise ConfigError(f"options sigma_min={low:g} and sigma_max={high:g}: the first must be the lower")
    sigma = (low ** (1 / rho) + fractions * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    bar = 1 / (1 + sigma**2)
    return from_betas(1 - bar / np.append(1.0, bar[:-1]))


def build(
    options: Mapping[str, Any], params: PyTree, diffusion: DiffusionConfig, name: str
) -> TracedDenoiser:
    """The denoiser made from `ImportedFunction.options`, as read or as saved."""
    kind = Parameterization(output="edm", sigma_data=options["sigma_data"])
    schedule, example = make_schedule(diffusion), _example(options)
    return wrap(
        _network(options),
        params,
        schedule=schedule,
        example=example,
        name=name,
        parameterization=kind,
        init=initializer(options["kind"], params),
    )


def _without_filters(state: tensors.State, path: Path) -> dict[str, np.ndarray]:
    kept = {name: value for name, value in state.items() if not name.endswith("resample_filter")}
    filters = [value for name, value in state.items() if name not in kept]
    if any(value.size != 4 for value in filters) or any("_aux_" in n and n.startswith("enc.") for n in kept):
        raise ConfigError(
            f"{path} is an NCSN++ (FIR filters or an auxiliary path in the encoder), which is not read; "
            "DDPM++ and ADM of EDM are"
        )
    return kept


def _options(state: tensors.State, path: Path) -> dict[str, Any]:
    blocks = [re.fullmatch(r"enc\.(\d+)x\1_block(\d+)\.conv0\.weight", name) for name in state]
    blocks = [(int(match[1]), int(match[2])) for match in blocks if match]
    if not blocks:
        raise CheckpointError(f"{path} has no enc.SxS_block0.conv0.weight: no network of EDM")
    sides = sorted({side for side, _ in blocks}, reverse=True)
    kind = "DhariwalUNet" if "out_conv.weight" in state else "SongUNet"
    entry = state.get(f"enc.{sides[0]}x{sides[0]}_conv.weight")
    if entry is None:
        raise CheckpointError(f"{path} does not fit {WHAT}: 1 missing: enc.{sides[0]}x{sides[0]}_conv.weight")
    classes = state["map_label.weight"].shape[1] if "map_label.weight" in state else 0
    return {
        "kind": kind,
        "sides": sides,
        "blocks": max(index for _, index in blocks) + 1,
        "classes": classes,
        "image_size": sides[0],
        "channels": entry.shape[1],
    }


def _told(state: tensors.State, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the network's class, by their own names, as the tensors tell them."""
    sides = [f"enc.{side}x{side}" for side in options["sides"]]
    embedded, features = state["map_layer0.weight"].shape
    base = features if options["kind"] == "DhariwalUNet" else len(state[f"{sides[0]}_conv.weight"])
    attends = [f"{side}_block0.qkv.weight" in state for side in sides]
    return {
        "img_resolution": options["image_size"],
        "img_channels": options["channels"],
        "label_dim": options["classes"],
        "model_type": options["kind"],
        "model_channels": base,
        "channel_mult": tuple(len(state[f"{side}_block0.conv0.weight"]) // base for side in sides),
        "channel_mult_emb": embedded // base,
        "channel_mult_noise": features // base,
        "num_blocks": options["blocks"],
        "attn_resolutions": tuple(
            s for s, attending in zip(options["sides"], attends, strict=True) if attending
        ),
    }


def _of_sides(stated: tuple[int, ...] | None, sides: list[int]) -> tuple[int, ...] | None:
    """Of stated resolutions those that a level has, the outermost first; others have no effect."""
    return None if stated is None else tuple(side for side in sides if side in stated)


def _network(options: Mapping[str, Any]) -> Network:
    return Network(options["kind"], tuple(options["sides"]), options["blocks"], options["classes"])


def _example(options: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    size, channels = options["image_size"], options["channels"]
    example = np.zeros((1, size, size, channels), np.float32), np.zeros(1, np.int32)
    return (*example, np.zeros(1, np.int32)) if options["classes"] else example
