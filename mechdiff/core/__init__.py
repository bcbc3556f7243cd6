"""The ground layer: presets, settings, errors, array types, PRNG streams, devices and precision."""
