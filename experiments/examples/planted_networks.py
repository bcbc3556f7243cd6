"""Networks whose responsible components are known by construction, as `--model=module:function` takes them.

    python -m experiments.examine --preset=tiny --set=study.pairs=8 --set=study.images=16 \\
        --set=sweep.images=16 --set=sweep.reference_images=16 --workdir=runs/known \\
        --model=experiments.examples.planted_networks:two_of_three
    python -m experiments.report --workdir=runs/known

shows how a study reports a network on which single ablations have no effect. Each function's network is
described in `mechdiff.validation.planted`; `print` shows its planted components.
"""

import sys

import numpy as np

from mechdiff.core.types import Images
from mechdiff.models.denoiser import Denoiser
from mechdiff.validation import planted

IMAGES = 24  # to score, and as many others


def two_of_three() -> tuple[Denoiser, Images]:
    """Three heads of which any one can be ablated but no two."""
    return _made("two_of_three")


def partial_backup() -> tuple[Denoiser, Images]:
    """A head, and another one without effect alone, which does half of its work when the first is ablated."""
    return _made("partial_backup")


def rare() -> tuple[Denoiser, Images]:
    """A head that helps one image in eight much and hurts the others a little."""
    return _made("rare")


def changing() -> tuple[Denoiser, Images]:
    """A branch that helps where noise is low and hurts where it is high."""
    return _made("changing")


def _made(name: str) -> tuple[Denoiser, Images]:
    plant = planted.make(name, images=IMAGES)
    print(f"planted: {', '.join(plant.signs)}", file=sys.stderr)
    return plant.denoiser, np.concatenate([plant.images, plant.others])
