"""A network of zeros, whose circuits tests make up."""

import numpy as np
import pytest
from reference.made_up_circuits import IMAGES, KEY, MadeUp

from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.validation.planted import weights


@pytest.fixture(scope="module")
def nobody(tiny):
    """A network of zeros: only its components are asked for."""
    params, identity = weights.template(tiny.unet)
    return Denoiser("made up", tiny.unet, make_schedule(tiny.diffusion), params, identity)


@pytest.fixture(scope="module")
def made_up(nobody):
    eval_set = EvalSet(np.zeros((IMAGES, 8, 8, 3), np.float32), [5, 30], KEY)
    settings = {"chosen": components(nobody.unet)}
    return lambda rules, **options: MadeUp(nobody, eval_set, rules=rules, **settings | options)
