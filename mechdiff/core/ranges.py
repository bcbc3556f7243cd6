"""Checks of settings, as errors that name the value and its range."""

from mechdiff.core.errors import ConfigError


def at_least(name: str, value: float, low: float) -> None:
    """Raises ConfigError if a setting is below `low`."""
    if value < low:
        raise ConfigError(f"{name}={value} is too small; at least {low}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError if a setting is outside [low, high]."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; {low} to {high}")
