"""The ground floor: presets, settings, errors, array types, PRNG streams, devices and precision."""
