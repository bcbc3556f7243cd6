"""Networks that were not written for this package, wrapped by their named values."""
