"""Networks: those of this package, and any other."""
