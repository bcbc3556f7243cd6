"""What all else builds on: presets, settings, errors, array types, PRNG streams, devices and precision."""
