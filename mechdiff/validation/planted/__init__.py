"""Denoisers whose responsible components are known, to prove methods on before real networks are asked.

They run in the same UNet code through the same gates; only their weights are written by hand (`wiring`) and
their pictures chosen (`scenes`). Every other component is busy and says nothing that is read. `scoring` asks
each method who matters. `closed_form` has denoisers without a network: the best for data that are known.
"""

from mechdiff.diffusion.closed_form import gaussian_denoiser, mixture_denoiser
from mechdiff.validation.planted.methods import METHODS, score, scored
from mechdiff.validation.planted.metrics import summarize, table
from mechdiff.validation.planted.networks import FAMILIES, SIZES, PlantedNetwork, make

__all__ = [
    "FAMILIES",
    "METHODS",
    "SIZES",
    "PlantedNetwork",
    "gaussian_denoiser",
    "make",
    "mixture_denoiser",
    "score",
    "scored",
    "summarize",
    "table",
]
