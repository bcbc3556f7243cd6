"""All flags of an ADM network: from its config file, from its tensors, and from the user's statements."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained import conditioning, states, tensors
from mechdiff.models.pretrained.adm_options import (
    ALIASES,
    ASKED,
    DECISIVE,
    DIALECTS,
    IGNORED,
    LABELS,
    MULTIPLIERS,
    NOISE_SECTIONS,
    NUM_CLASSES,
    OF_DIFFUSION,
    OTHER_SECTIONS,
    OWN_SECTIONS,
    SUPER_RESOLUTION,
    TABLE,
    WHAT,
    ignored,
)
from mechdiff.models.pretrained.adm_tensors import shapes_say
from mechdiff.models.pretrained.imported import Stated
from mechdiff.models.pretrained.options import Options, read_options


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of an ADM network, complete.

    Attributes:
      values: of every flag of `TABLE`; `widths`, `blocks` and `attends` per level; `channels`
        (`conditioning.Channels`) and `class_fields` of `UNetConfig`.
      notes: what was inferred from the tensors, assumed, or ignored.
      assumed: `flag=value` of each default that nothing confirms.
    """

    values: dict[str, Any]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def flattened(
    config: Mapping[str, Any], deciding: Collection[str] = frozenset({*TABLE, *ALIASES})
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config without its sections (`model: ...`, `diffusion: ...`): their options are flags too. Those of
    classifiers and of sampling are left out, which a note says.

    Args:
      deciding: options that are taken from the top level and from sections of the network alone.

    Raises:
      ConfigError: an option that two sections set differently, unless it has no bearing (`IGNORED`); one
        that decides numbers in a section that may be of another network, such as its teacher.
    """
    flat: dict[str, Any] = {}
    left_out, others = [], {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and name not in deciding
        if nested and re.fullmatch(OTHER_SECTIONS, str(name)):
            left_out.append(shorten(name)[1:-1])
            continue
        own = not nested or re.fullmatch(OWN_SECTIONS, str(name))
        for inner, item in (value if nested else {name: value}).items():
            if nested and inner == "steps" and str(name).startswith("train"):
                left_out.append(f"{shorten(name)[1:-1]}.steps")
                continue
            if not own and inner in deciding:
                others[f"{shorten(name)[1:-1]}.{inner}"] = (inner, item)
                continue
            if inner in flat and flat[inner] != item and not ignored(inner):
                raise ConfigError(f"{WHAT} option {shorten(inner)} is set twice, differently")
            flat[inner] = item
    for shown, (inner, item) in others.items():
        if inner not in flat or flat[inner] != item:  # else it decides nothing
            raise ConfigError(
                f"{WHAT} option {shown} may be of another network; write it at the top level if it is of "
                "this one, else take it out"
            )
    notes = (f"not of the network, so left out: {', '.join(left_out)}",) if left_out else ()
    return flat, notes


def _check_steps(config: Mapping[str, Any], text: bool) -> None:
    """Refuses `steps` that may be a sampler's: as noise levels it is known beside other options of diffusion
    (`OF_DIFFUSION`), but of no command line."""
    for name, value in {"": config, **config}.items():
        if not isinstance(value, Mapping) or "steps" not in value or str(name).startswith("train"):
            continue
        known = re.fullmatch(NOISE_SECTIONS, str(name)) or not OF_DIFFUSION.isdisjoint(value)
        if (text or not known) and not re.fullmatch(OTHER_SECTIONS, str(name)):
            shown = f"{shorten(name)[1:-1]}.steps" if name else "steps"
            raise ConfigError(
                f"{WHAT} option {shown} may be a sampler's; write diffusion_steps if it is the number of "
                "noise levels, else take it out"
            )


def flags(config: Mapping[str, Any], state: tensors.State, stated: Stated, text: bool = False) -> Flags:
    """All flags of a network: from the config, inferred from the tensors, stated, or by default.

    Args:
      text: whether the config is a command line.

    Raises:
      ConfigError: unknown flags, unsupported values, contradictions, or a missing flag that decides the
        network and can't be inferred.
    """
    _check_steps(config, text)
    flat, left_out = flattened(config)
    spelled, by_class = _spelled(flat)
    get = read_options(spelled, TABLE, what=WHAT, ignored=IGNORED)
    get = _with_statements(get, stated)
    said = shapes_say(state)
    values = dict(get.values)
    read_off = []
    for name in ("num_channels", "use_scale_shift_norm", "resblock_updown"):
        if values[name] is None and name in said:
            values[name] = said[name]
            read_off.append(f"{name}={said[name]}")
    values["image_size"] = _side(get)
    values["use_scale_shift_norm"] = bool(values["use_scale_shift_norm"])
    values["resblock_updown"] = bool(values["resblock_updown"])
    values["channels"] = _channels(get, said, stated, read_off)
    rows = _classes(get, conditioning.table_rows(state, LABELS), read_off)
    values["class_fields"] = conditioning.classes(rows, stated.null_class, WHAT)
    if by_class and "num_heads" not in get.stated:
        values["num_heads"] = 1  # default of the class, not of the scripts
    values |= _levels(get, values, said, by_class, read_off)
    values["predict_xstart"] = _predicts_image(get, stated)
    assumed = _assumed(get, values, stated)
    values["rescale_timesteps"] = _rescaled(values, stated)
    notes = [*left_out]
    if read_off:
        notes.append(f"flags read off the tensors: {', '.join(read_off)}")
    if assumed:
        notes.append(
            f"ASSUMED, as the scripts' defaults: {', '.join(assumed)}; write what is otherwise into the file"
        )
    if get.passed_over:
        notes.append(f"options without bearing here: {', '.join(get.passed_over)}")
    return Flags(values, tuple(notes), assumed)


def _spelled(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The flags in the scripts' spelling, and whether they were the arguments of the network's class."""
    by_class, flat = "model_channels" in config, {}
    for name, value in config.items():
        ours = ALIASES.get(name, name) if isinstance(name, str) else name
        if ours in flat:
            same = [shorten(other) for other in (*ALIASES, ours) if ALIASES.get(other, other) == ours]
            raise ConfigError(f"{WHAT} options {' and '.join(same)} are the same; write one")
        flat[ours] = value
    return flat, by_class


def _with_statements(get: Options, stated: Stated) -> Options:
    """The flags with the user's statements added; a contradiction is an error."""
    values = dict(get.values)
    statements = {name: getattr(stated, ours) for name, ours in ASKED.items()}
    statements["predict_xstart"] = None if stated.prediction is None else stated.prediction == "sample"
    statements["rescale_timesteps"] = stated.rescale_timesteps
    for name, value in statements.items():
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


def _predicts_image(get: Options, stated: Stated) -> bool:
    """Whether the network's output is the image: by `predict_xstart`, or by forks' `model_mean_type`."""
    by_flag, kind = get["predict_xstart"], get["model_mean_type"]
    if "model_mean_type" not in get.stated:
        return by_flag
    if by_flag != (kind == "start_x") and ("predict_xstart" in get.stated or stated.prediction):
        raise ConfigError(
            f"{WHAT} option model_mean_type={kind} contradicts predict_xstart={by_flag}; write what is right"
        )
    return kind == "start_x"


def _side(get: Options) -> int:
    """The image's side: `large_size` of super-resolution, which has no `image_size`."""
    large = get["large_size"]
    if large is None:
        if get["small_size"] is not None:
            raise ConfigError(
                f"{WHAT} option large_size is absent beside small_size={get['small_size']}; write it"
            )
        return get["image_size"]
    if "image_size" in get.stated and get["image_size"] != large:
        raise ConfigError(f"{WHAT} options image_size={get['image_size']} and large_size={large} differ")
    return large


def _channels(
    get: Options, said: Mapping[str, Any], stated: Stated, read_off: list[str]
) -> conditioning.Channels:
    """Channels by the flags, or by the tensors if there are no such flags. Super-resolution concatenates the
    enlarged smaller image after the noisy one."""
    inputs, outputs, learned = get["in_channels"], get["out_channels"], get["learn_sigma"]
    doubled = get["large_size"] is not None
    if doubled:
        image = inputs or said.get("in_channels", 6) // 2
        if outputs is None and learned is not None:
            outputs = image * (1 + learned)
        outputs = outputs or said.get("out_channels", image)
        return conditioning.channels(WHAT, 2 * image, outputs, "last", image)
    inputs = inputs or said.get("in_channels", 3)
    if "in_channels" not in get.stated and inputs != 3:
        read_off.append(f"in_channels={inputs}")
    if outputs is None and learned is not None and inputs in conditioning.IMAGE_CHANNELS:
        outputs = inputs * (1 + learned)
    if outputs is None:
        outputs = said.get("out_channels", inputs)
        read_off.append(f"out_channels={outputs}")
    return conditioning.channels(WHAT, inputs, outputs, stated.condition)


def _classes(get: Options, rows: int, read_off: list[str]) -> int:
    """Rows of the class embedding table; 0: the network has none.

    Args:
      rows: rows of the table in the file.
    """
    conditioned, count = get["class_cond"], get["num_classes"]
    if conditioned is False and rows:
        raise ConfigError(
            f"{WHAT} option class_cond=False, but the file has {LABELS}, a table of {rows} classes; write "
            "class_cond=true"
        )
    if conditioned is False:
        return 0
    if count is None and rows:
        read_off.append(f"num_classes={rows}")
    if count is None and conditioned and not rows:
        return NUM_CLASSES  # then its table is reported as missing
    return count or rows


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
    by_widths = tuple(width / values["num_channels"] for width in said.get("widths", ()))
    scripts = MULTIPLIERS | (SUPER_RESOLUTION if values["large_size"] else {})
    usual = (1, 2, 4, 8) if by_class else scripts.get(values["image_size"])
    if not {"image_size", "large_size"} & get.stated and by_widths and by_widths != usual:
        shown = [float(factor) for factor in by_widths]
        raise ConfigError(
            f"{WHAT} option image_size is absent, and the tensors' channel_mult={shown} is not that of "
            f"{values['image_size']}, its default; state it"
        )
    if usual is not None:
        return usual
    if not by_widths:
        raise ConfigError(f"{WHAT} option channel_mult is needed with image_size={values['image_size']}")
    read_off.append(f"channel_mult={[float(factor) for factor in by_widths]}")
    return by_widths


def _rates(get: Options, side: int, by_class: bool) -> tuple[int, ...] | None:
    """Downsampling factors with attention; None: not given. The scripts' flag names sides of maps, the
    class's names factors."""
    resolutions = get["attention_resolutions"]
    if resolutions is None or by_class:
        return resolutions
    return tuple(side // resolution for resolution in resolutions)


def _rescaled(values: Mapping[str, Any], stated: Stated) -> bool:
    """Whether the network is given t * 1000 / T. For T = 1000 it makes no difference; else it must be set."""
    if values["diffusion_steps"] == 1000:
        return False
    if values["rescale_timesteps"] is not None:
        return values["rescale_timesteps"]
    if stated.dialect is not None:
        return DIALECTS[stated.dialect]
    raise ConfigError(
        f"{WHAT} option rescale_timesteps is absent, and with diffusion_steps={values['diffusion_steps']} it "
        "decides the network's input: write true (default of improved-diffusion) or false (of "
        "guided-diffusion), or give --rescale_timesteps or --dialect"
    )


def _assumed(get: Options, values: Mapping[str, Any], stated: Stated) -> tuple[str, ...]:
    """Flags that decide numbers and are neither given, stated nor inferred from tensors."""
    known = {ours for ours in ASKED if getattr(stated, ASKED[ours]) is not None}
    if stated.prediction or "model_mean_type" in get.stated:
        known |= {"predict_xstart"}
    names = [*DECISIVE, *(["num_heads"] if values["num_head_channels"] == -1 else [])]
    if values["large_size"]:  # super-resolution has no such flags
        known |= {"image_size", "use_new_attention_order"}
    return states.summary({name: values[name] for name in names if name not in get.stated | known})
