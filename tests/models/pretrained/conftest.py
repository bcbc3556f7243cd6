"""What tests of other people's folders share."""

import json
from pathlib import Path

import pytest
from reference.networks import SMALL, random_params
from reference.pipelines import DIFFUSION

from mechdiff.models import pretrained


@pytest.fixture
def pipeline(tmp_path) -> Path:
    """A saved pipeline: unet/, scheduler/, model_index.json."""
    home = pretrained.write_diffusers(tmp_path / "unet", SMALL, DIFFUSION, random_params(SMALL))
    (tmp_path / "scheduler").mkdir()
    (home / "scheduler_config.json").rename(tmp_path / "scheduler" / "scheduler_config.json")
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"} | parts))
    return tmp_path
