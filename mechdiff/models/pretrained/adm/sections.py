"""Options of an ADM config that has sections: which are the network's, and which are other programs'.

A config may be flat, or have its flags in sections (`model: ...`, `diffusion: ...`), among others of
classifiers, of sampling, or of another network, such as a teacher.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained.adm.options import ALIASES, TABLE, WHAT, ignored

SUFFIX = r"(_(args|cfg|config|defaults|flags|kwargs|options|params))?"
# Sections of a config that are about the network and its training, and those that are about other programs.
OWN_SECTIONS = (
    r"(model|unet|unet_model|network|net|arch|architecture|denoiser|ddpm|((gaussian|guided)_)?diffusion|"
    r"diffusion_model|model_and_diffusion|data|dataset|train|trainer|training|args|cfg|config|defaults?|flags|"
    r"options|settings|parameters|params|hparams|hyper_?parameters)"
    rf"{SUFFIX}"
)
NOISE_SECTIONS = rf"(gaussian_)?diffusion{SUFFIX}"  # of the own: `steps` in them are noise levels
OTHER_SECTIONS = r"(.*_)?(classifier|sampl(e|er|ing)|eval|evaluation)(_.*)?"
OF_DIFFUSION = {"noise_schedule", "predict_xstart", "model_mean_type", "rescale_timesteps"}  # beside `steps`


class _Section(NamedTuple):
    """Options that stand together: `shown` is their section's name for messages.

    Attributes:
      own: whether they are of the network, as those of the top level are.
      elsewhere: whether they are of another program.
      trains: whether `steps` among them are those of training.
    """

    options: Mapping
    shown: str = ""
    own: bool = True
    elsewhere: bool = False
    trains: bool = False


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
    for section in _sections(config, deciding):
        if section.elsewhere:
            left_out.append(section.shown)
            continue
        for name, value in section.options.items():
            shown = f"{section.shown}.{name}"
            if section.trains and name == "steps":
                left_out.append(shown)
            elif not section.own and name in deciding:
                others[shown] = (name, value)
            elif name in flat and flat[name] != value and not ignored(name):
                raise ConfigError(f"{WHAT} option {shorten(name)} is set twice, differently")
            else:
                flat[name] = value
    _check_others(others, flat)
    notes = (f"not of the network, so left out: {', '.join(left_out)}",) if left_out else ()
    return flat, notes


def check_steps(config: Mapping[str, Any], text: bool) -> None:
    """Refuses `steps` that may be a sampler's.

    Args:
      text: whether the config is a command line.
    """
    for section, options in {"": config, **config}.items():
        if not isinstance(options, Mapping) or "steps" not in options:
            continue
        if _may_be_a_samplers(str(section), options, text):
            shown = f"{shorten(section)[1:-1]}.steps" if section else "steps"
            raise ConfigError(
                f"{WHAT} option {shown} may be a sampler's; write diffusion_steps if it is the number of "
                "noise levels, else take it out"
            )


def _sections(config: Mapping[str, Any], deciding: Collection[str]) -> Iterator[_Section]:
    """The sections of a config in order; each option of the top level is one."""
    for name, value in config.items():
        if not isinstance(value, Mapping) or name in deciding:
            yield _Section({name: value})
            continue
        yield _Section(
            value,
            shown=shorten(name)[1:-1],
            own=bool(re.fullmatch(OWN_SECTIONS, str(name))),
            elsewhere=bool(re.fullmatch(OTHER_SECTIONS, str(name))),
            trains=str(name).startswith("train"),
        )


def _check_others(others: Mapping[str, tuple[str, Any]], flat: Mapping[str, Any]) -> None:
    """Refuses options of other networks, shown name -> name and value, that aren't this one's as well."""
    for shown, (name, value) in others.items():
        if name not in flat or flat[name] != value:  # else it decides nothing
            raise ConfigError(
                f"{WHAT} option {shown} may be of another network; write it at the top level if it is of "
                "this one, else take it out"
            )


def _may_be_a_samplers(section: str, options: Mapping, text: bool) -> bool:
    """Whether a section's `steps` may be: as noise levels they are known beside other options of diffusion,
    but of no command line."""
    if section.startswith("train") or re.fullmatch(OTHER_SECTIONS, section):
        return False
    of_noise = re.fullmatch(NOISE_SECTIONS, section) or not OF_DIFFUSION.isdisjoint(options)
    return text or not of_noise
