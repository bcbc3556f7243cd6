"""Which components a user means."""

from collections.abc import Iterable

import pandas as pd

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.interventions.components import Component

# A name, a regular expression, several of them, or a table that has them in a column: `model.components()`,
# `result.top()`.
What = str | Component | Iterable[str | Component] | pd.DataFrame


def listed(what: What) -> str | list[str | Component]:
    """`what` as `components.select` takes it.

    Raises:
      ConfigError: neither a name nor several of them, or none; a table without them.

    Example:
      >>> listed(("mid.attn0.head0", "mid.attn0.head1"))
      ['mid.attn0.head0', 'mid.attn0.head1']
    """
    if isinstance(what, str):
        return what
    if isinstance(what, Component):
        return [what]
    if isinstance(what, pd.DataFrame):
        columns = [column for column in ("name", "component") if column in what]
        if not columns:
            raise ConfigError(f"a table of {', '.join(map(str, what))}: components need a column 'name'")
        what = what[columns[0]]
    chosen = list(what) if isinstance(what, Iterable) else []
    if not chosen or not all(isinstance(item, str | Component) for item in chosen):
        raise ConfigError(
            f"components {shorten(what)}: expected a name, a regular expression, or a list of names; "
            "model.components() shows them"
        )
    return chosen
