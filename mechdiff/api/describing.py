"""A model in words: its line, its table in a notebook, the table of its components."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.interventions.components import Component
from mechdiff.interventions.describe import table


def line(model: Any) -> str:
    """`repr` of a `Model`: its name, network and intervention."""
    return f"Model({model.name!r}: {_network(model)}; {model.doing})"


def html(model: Any) -> str:
    """What notebooks show of a `Model`."""
    facts: list[tuple[str, object]] = [("network", _network(model)), ("intervention", model.doing)]
    if model.config is not None:
        facts.append(("trained on", model.config.data.name))
    if model.record.get("steps"):
        facts.append(("training steps", model.record["steps"]))
    return table(f"Model {model.name}", [*facts, ("origin", model.origin)])


def component_table(components: Sequence[Component], type: str | None) -> pd.DataFrame:
    """Components of one type, or of all: name, type, resolution (pixels), depth; errors as of
    `Model.components`."""
    types = [*dict.fromkeys(component.component_type for component in components)]
    if type is not None and type not in types:
        raise ConfigError(unknown("component type", type, types))
    rows = [
        (component.name, component.component_type, component.resolution, component.depth)
        for component in components
        if type in (None, component.component_type)
    ]
    return pd.DataFrame(rows, columns=["name", "type", "resolution", "depth"])


def _network(model: Any) -> str:
    return repr(model.denoiser).split(": ", 1)[-1].rstrip(")")
