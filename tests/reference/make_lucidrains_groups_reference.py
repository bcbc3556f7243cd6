"""A network of lucidrains' releases below 2 (group norms) in PyTorch, for `lucidrains_groups.npz`.

    python -m tests.reference.make_lucidrains_groups_reference LUCIDRAINS

LUCIDRAINS: a folder with denoising_diffusion_pytorch 1 in it (made with 1.11.0; einops, ema_pytorch).
"""

import sys
from pathlib import Path

import numpy as np

from . import make_foreign_reference

NAME = "lucidrains_groups"
ARGUMENTS = {"dim": 16, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8, "resnet_block_groups": 4}


def main(lucidrains: str) -> None:
    sys.path.insert(0, lucidrains)
    make_foreign_reference.LUCIDRAINS[NAME] = (ARGUMENTS, {"timesteps": 1000})
    arrays = {f"{NAME}/{key}": value for key, value in make_foreign_reference.lucid(NAME).items()}
    np.savez_compressed(Path(__file__).with_name(f"{NAME}.npz"), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
