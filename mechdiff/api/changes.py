"""What methods of a `Model` change: the intervention, and the images that replacements come from.

Every function takes a `Model` (its module imports this one, hence `Any`) and returns both, changed. Arguments
and errors are those of the method.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mechdiff.api.images import Given, eval_images, how_many
from mechdiff.api.replacing import Source, Sources
from mechdiff.api.selection import What, listed
from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.core.types import AnyArray
from mechdiff.interventions import build
from mechdiff.interventions.components import select
from mechdiff.interventions.directions import add_direction
from mechdiff.interventions.record import Intervention

ABLATIONS = ("zero", "mean")  # that act while sampling; sweeps know more
REFERENCES = 16  # images that a mean is taken over


class Change(NamedTuple):
    """The two fields of a `Model` that say what is done to its network."""

    intervention: Intervention
    sources: Sources


def ablated(model: Any, what: What, with_: str, images: Given) -> Change:
    """`Model.ablate`."""
    if with_ not in ABLATIONS:
        raise ConfigError(unknown("ablation of a model", with_, ABLATIONS) + "; model.sweep knows more")
    chosen = listed(what)
    intervention = build.set_gate(model.intervention, chosen, 0.0)
    names = list(select(model.intervention, chosen))
    if with_ == "zero":
        return Change(intervention, _without(model.sources, names))
    reference = eval_images(model, images, min(REFERENCES, how_many(model, images) or REFERENCES))
    label = f"mean over {len(reference.scored)} images"
    source = Source(reference.scored, True, label, reference.scored_condition)
    return Change(intervention, _with(model.sources, names, source))


def patched(model: Any, what: What, images: Given) -> Change:
    """`Model.patch`."""
    prepared = eval_images(model, images, how_many(model, images) or REFERENCES)
    chosen = listed(what)
    names = list(select(model.intervention, chosen))
    intervention = build.set_gate(model.intervention, chosen, 0.0)
    label = f"patched from {len(prepared.scored)} images"
    source = Source(prepared.scored, False, label, prepared.scored_condition)
    return Change(intervention, _with(model.sources, names, source))


def scaled(model: Any, what: What, factor: float) -> Change:
    """`Model.scale`."""
    chosen = listed(what)
    intervention = build.set_gate(model.intervention, chosen, ranges.finite("factor", factor))
    return Change(intervention, _without(model.sources, list(select(model.intervention, chosen))))


def tempered(model: Any, what: What, value: float) -> Change:
    """`Model.temperature`."""
    chosen = listed(what)
    value = ranges.finite("temperature", value)
    return Change(build.set_temperature(model.intervention, chosen, value), model.sources)


def directed(model: Any, component: str, direction: AnyArray, strength: float) -> Change:
    """`Model.add`."""
    strength = ranges.finite("strength", strength)
    if not isinstance(component, str):
        raise ConfigError(f"component={shorten(component)}: expected the name of one")
    return Change(add_direction(model.intervention, component, direction, strength), model.sources)


def windowed(model: Any, low: int, high: int) -> Change:
    """`Model.during`."""
    low, high = ranges.whole("low", low), ranges.whole("high", high)
    steps = model.denoiser.schedule.steps
    if low >= steps:
        raise ConfigError(f"window [{low}, {high}) holds no timestep: these are integers in [0, {steps})")
    return Change(build.windowed(model.intervention, low, high), model.sources)


def _with(sources: Sources, names: Sequence[str], source: Source) -> Mapping[str, Source]:
    return dict(sources) | dict.fromkeys(names, source)


def _without(sources: Sources, names: Sequence[str]) -> Mapping[str, Source]:
    return {name: source for name, source in sources.items() if name not in names}
