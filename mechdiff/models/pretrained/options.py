"""Options of a foreign config: mapped, without bearing, or refused by name."""

from collections.abc import Mapping
from typing import Any

from mechdiff.core.errors import ConfigError, unknown


def checked(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    only: Mapping[str, tuple],
    ignored: tuple[str, ...],
    what: str,
) -> dict[str, Any]:
    """`given` over `defaults`.

    Args:
      defaults: every option that is known, and what its absence means.
      only: option -> values that are supported, where not all are.
      ignored: options without bearing on what the network computes; so are names that begin with `_`.
      what: for messages, such as `UNet2DModel`.

    Raises:
      ConfigError: an unknown option, or a value that is not supported.
    """
    for name in given:
        if name not in defaults and name not in ignored and not name.startswith("_"):
            raise ConfigError(unknown(f"option of {what}", name, defaults))
    values = {**defaults, **{name: given[name] for name in defaults if name in given}}
    for name, allowed in only.items():
        if values[name] not in allowed:
            raise ConfigError(refusal(what, name, values[name], allowed))
    return values


def refusal(what: str, name: str, value: Any, allowed: tuple) -> str:
    """The line for a value that is not supported."""
    return f"{what} option {name}={value!r} is not supported; only {' or '.join(map(repr, allowed))}"
