"""What lies in a foreign folder: configs, flags, state dicts, averages, tables of noise levels."""
