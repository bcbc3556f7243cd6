"""Reads checkpoints of other libraries, and writes diffusers' format.

`read(folder)` opens a diffusers `UNet2DModel` folder, a guided-diffusion or improved-diffusion (ADM) state
dict with its flags, a state dict of Ho's network in its PyTorch names (ddim, SDEdit) with its config, or a
network of lucidrains, EDM or consistency models; `write_diffusers(folder, ...)` writes one. Tensors are read
from safetensors files: torch is not needed, and a pickle is never opened.
"""

from mechdiff.models.pretrained.diffusers.reader import write_diffusers
from mechdiff.models.pretrained.imported import Imported, ImportedFunction, Stated
from mechdiff.models.pretrained.reading import read

__all__ = ["Imported", "ImportedFunction", "Stated", "read", "write_diffusers"]
