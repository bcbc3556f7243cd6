"""EDM's networks (NVlabs/edm)."""
