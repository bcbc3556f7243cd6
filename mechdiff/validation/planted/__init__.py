"""Planted networks: denoisers whose responsible components are known by construction, to validate methods.

They run in the same UNet code with the same gates; only their weights are written by hand (`weights`) and
their images generated for the purpose (`datasets`). All other components are active distractors that cannot
affect the output. `methods` scores components by every method, `metrics` compares scores with the truth.
`diffusion.closed_form` has optimal denoisers of known data, without a network.
"""

from mechdiff.validation.planted.methods import METHODS, score, scored
from mechdiff.validation.planted.metrics import summarize, table
from mechdiff.validation.planted.networks import PLANTS, SIZES, PlantedNetwork, make

__all__ = [
    "METHODS",
    "PLANTS",
    "SIZES",
    "PlantedNetwork",
    "make",
    "score",
    "scored",
    "summarize",
    "table",
]
