"""All flags of an ADM network: from its config file, from its tensors, and from the user's statements."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.adm import rules
from mechdiff.models.pretrained.adm.levels import levels
from mechdiff.models.pretrained.adm.options import (
    ALIASES,
    ASKED,
    DECISIVE,
    IGNORED,
    LABELS,
    TABLE,
    WHAT,
    check_deciding,
)
from mechdiff.models.pretrained.adm.rules import Derived, Evidence, inferred, switch
from mechdiff.models.pretrained.adm.sections import check_steps, flattened
from mechdiff.models.pretrained.adm.tensors import shapes_say
from mechdiff.models.pretrained.files import states, tensors
from mechdiff.models.pretrained.files.options import Options, read_options
from mechdiff.models.pretrained.imported import Stated

# Flags that need more than their default in `options.TABLE`, and what finds them; in this order, as later
# rules read what earlier ones found.
RULES: dict[str, Callable[[Evidence], Derived]] = {
    "num_channels": partial(inferred, "num_channels"),
    "use_scale_shift_norm": partial(switch, "use_scale_shift_norm"),
    "resblock_updown": partial(switch, "resblock_updown"),
    "image_size": rules.side,
    "channels": rules.channels,
    "class_fields": rules.classes,
    "num_heads": rules.heads,
    "widths, blocks, attends": levels,
    "predict_xstart, prediction": rules.prediction,
    "rescale_timesteps": rules.rescaled,
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of an ADM network, complete.

    Attributes:
      values: of every flag of `TABLE`; `widths`, `blocks` and `attends` per level; `channels`
        (`conditioning.Channels`), `class_fields` and `prediction` of `UNetConfig`; `betas`, the first and
        the last, where another program's were stated.
      notes: what was inferred from the tensors, assumed, or ignored.
      assumed: `flag=value` of each default that nothing confirms.
    """

    values: dict[str, Any]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def flags(config: Mapping[str, Any], state: tensors.State, stated: Stated, text: bool = False) -> Flags:
    """All flags of a network: from the config, inferred from the tensors, stated, or by default.

    Args:
      text: whether the config is a command line.

    Raises:
      ConfigError: unknown flags, unsupported values, contradictions, or a missing flag that decides the
        network and can't be inferred.
    """
    check_steps(config, text)
    flat, left_out = flattened(config)
    check_deciding(flat)
    by_class = "model_channels" in flat
    options = _with_statements(
        read_options(_in_scripts_spelling(flat), TABLE, what=WHAT, ignored=IGNORED), stated
    )
    evidence = Evidence(options, shapes_say(state), conditioning.table_rows(state, LABELS), stated, by_class)
    read_off: list[str] = []
    for rule in RULES.values():
        derived = rule(evidence)
        read_off += derived.read_off
        evidence = evidence._replace(options=_with_values(evidence.options, derived.values))
    assumed = _assumed(evidence)
    notes = (*left_out, *_notes(read_off, assumed, options.passed_over))
    return Flags(evidence.options.values, notes, assumed)


def _in_scripts_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags under the scripts' names, those of the network's class among them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        ours = ALIASES.get(name, name) if isinstance(name, str) else name
        if ours in flat:
            same = [shorten(other) for other in (*ALIASES, ours) if ALIASES.get(other, other) == ours]
            raise ConfigError(f"{WHAT} options {' and '.join(same)} are the same; write one")
        flat[ours] = value
    return flat


def _with_statements(options: Options, stated: Stated) -> Options:
    """The flags with the user's statements added; a contradiction is an error."""
    statements = {name: value for name, value in _statements(stated).items() if value is not None}
    for name, value in statements.items():
        if name in options.stated and options[name] != value:
            raise ConfigError(
                f"stated {name}={shorten(value)} contradicts {WHAT} option {name}={options[name]}"
            )
    return _with_values(options, statements | {"betas": _betas(options, stated)})


def _betas(options: Options, stated: Stated) -> tuple[float, float] | None:
    """The first and last beta that were stated, of another program's schedule; None: they follow from the
    steps.

    Raises:
      ConfigError: betas beside a schedule of the flags, or of cosine; one of two; none of a schedule that is
        not of this program.
    """
    schedule, first, last = stated.noise_schedule, stated.beta_start, stated.beta_end
    theirs = schedule in ("linear", "scaled_linear") and "noise_schedule" not in options.stated
    if not theirs and (first, last) != (None, None):
        raise ConfigError(
            f"{WHAT}'s betas follow from diffusion_steps; leave out --beta_start and --beta_end, or state "
            "--noise_schedule=linear or scaled_linear too, which no file says then, if another program's "
            "trained it"
        )
    if first is None and last is None and schedule != "scaled_linear":
        return None
    if first is None or last is None:
        raise ConfigError(
            f"--noise_schedule={schedule} with these betas is not {WHAT}'s own: state both --beta_start and "
            "--beta_end"
        )
    return first, last


def _statements(stated: Stated) -> dict[str, Any]:
    """Flag -> what the user stated of it; None: nothing."""
    return {
        **{name: getattr(stated, ours) for name, ours in ASKED.items()},
        "predict_xstart": None if stated.prediction is None else stated.prediction == "sample",
        "rescale_timesteps": stated.rescale_timesteps,
    }


def _with_values(options: Options, values: Mapping[str, Any]) -> Options:
    return dataclasses.replace(options, values={**options.values, **values})


def _assumed(evidence: Evidence) -> tuple[str, ...]:
    """Flags that decide numbers and are neither given, stated nor inferred from tensors."""
    options, stated = evidence.options, evidence.stated
    settled = {ours for ours in ASKED if getattr(stated, ASKED[ours]) is not None}
    if stated.prediction or "model_mean_type" in options.stated:
        settled |= {"predict_xstart"}
    if options["large_size"]:  # super-resolution has no such flags
        settled |= {"image_size", "use_new_attention_order"}
    names = [*DECISIVE, *(["num_heads"] if options["num_head_channels"] == -1 else [])]
    return states.summary({name: options[name] for name in names if name not in options.stated | settled})


def _notes(read_off: list[str], assumed: tuple[str, ...], passed_over: tuple[str, ...]) -> list[str]:
    notes = []
    if read_off:
        notes.append(f"flags read off the tensors: {', '.join(read_off)}")
    if assumed:
        notes.append(
            f"ASSUMED, as the scripts' defaults: {', '.join(assumed)}; write what is otherwise into the file"
        )
    if passed_over:
        notes.append(f"options without bearing here: {', '.join(passed_over)}")
    return notes
