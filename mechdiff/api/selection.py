"""Which components a user means."""

from collections.abc import Iterable

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.interventions.components import Component

What = str | Component | Iterable[str | Component]  # a name, a regular expression, or a list of components


def listed(what: What) -> str | list[str | Component]:
    """`what` as `components.select` takes it.

    Raises:
      ConfigError: neither a name nor a list of them, or an empty list.

    Example:
      >>> listed(("mid.attn0.head0", "mid.attn0.head1"))
      ['mid.attn0.head0', 'mid.attn0.head1']
    """
    if isinstance(what, str):
        return what
    if isinstance(what, Component):
        return [what]
    chosen = list(what) if isinstance(what, Iterable) else []
    if not chosen:
        raise ConfigError(
            f"components {shorten(what)}: expected a name, a regular expression, or a list of names; "
            "model.components() shows them"
        )
    return chosen
