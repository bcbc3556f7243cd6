"""A small training state's parameters and config, and damage to files."""

from pathlib import Path

import jax
import numpy as np

CONFIG = {"seed": 1, "train": {"steps": 10, "batch": 4}, "unet": {"widths": (8, 16)}}
PARAMS = {
    "conv": {
        "kernel": np.linspace(-1, 1, 54, dtype=np.float32).reshape(3, 3, 2, 3),
        "bias": np.full(3, 1 / 3, np.float32),
    }
}


def assert_same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file; an empty file gets a byte."""
    content = bytearray(path.read_bytes() or b"\x01")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def contents(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
