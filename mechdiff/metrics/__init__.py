"""Pure measures on arrays."""
