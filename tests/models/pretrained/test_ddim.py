"""Configs of Ho's network in its PyTorch names (ddim)."""

import json

import pytest
from reference.pretrained_networks import frozen, written

from mechdiff.core.errors import MechdiffError
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Stated, ddim
from mechdiff.models.pretrained.files import tensors

DDIM_BAD = [
    ({"ch": None}, {}, "ddim model option ch=None is not a whole number of at least 1"),
    ({"ch_mult": [2, 4]}, {}, "option ch_mult=[2, 4]: only lists that begin with 1"),
    ({"in_channels": 6}, {}, "in_channels=6 with out_channels=3: a network conditioned by channels"),
    ({"resamp_with_conv": 3}, {}, "option resamp_with_conv=3 is not true or false"),
    ({"attn_resolutions": "x"}, {}, "option attn_resolutions='x' is not a list, each a whole number"),
    ({"chanels": 1}, {}, "unknown option of ddim model 'chanels'"),
    ({}, {"data": {"image_size": 8, "rescaled": False}}, "ddim data option rescaled=False is not supported"),
    (
        {},
        {"data": {"image_size": 8, "logit_transform": True}},
        "option logit_transform=True is not supported",
    ),
    ({}, {"data": {}}, "option data.image_size is absent"),
    ({}, {"diffusion": {"beta_schedule": "jsd"}}, "option beta_schedule='jsd' is not supported"),
    ({}, {"diffusion": [1]}, "section diffusion=[1] is not a mapping"),
    ({}, {"first_stage": {}}, "unknown section of ddim 'first_stage'"),
]


@pytest.mark.parametrize(("model", "sections", "expected"), DDIM_BAD)
def test_a_bad_config_of_ddim_is_one_line(model, sections, expected, tmp_path):
    arrays = frozen("ddim")
    config = json.loads(arrays["config"])
    config = config | {"model": config["model"] | model} | sections
    with pytest.raises(MechdiffError) as error:
        pretrained.read(written(tmp_path, json.dumps(config), arrays["state"]))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_the_noise_levels_of_ddim_are_read_or_said_to_be_assumed(tmp_path):
    arrays = frozen("ddim")
    config = json.loads(arrays["config"])
    for levels, schedule in (
        ({"beta_schedule": "quad", "num_diffusion_timesteps": 100}, "scaled_linear"),
        ({"beta_schedule": "const", "beta_end": "1e-2", "num_diffusion_timesteps": 10}, "betas"),
    ):
        folder = written(tmp_path, json.dumps(config | {"diffusion": levels}), arrays["state"])
        assert pretrained.read(folder).diffusion.schedule == schedule
    assert pretrained.read(folder).diffusion.betas == (0.01,) * 10
    flat = config["model"] | {"resolution": 8}
    del flat["type"]
    model = pretrained.read(written(tmp_path, json.dumps(flat), arrays["state"]))
    assert model.assumed[0] == "noise_schedule='linear'" and "ASSUMED" in model.notes[-1]
    cosine = pretrained.read(tmp_path, Stated(noise_schedule="cosine"))
    assert cosine.assumed == ("noise_steps=1000",)  # its betas are made of nothing else
    stated = Stated(noise_schedule="cosine", noise_steps=50, beta_start=1e-3, beta_end=0.1)
    stated_model = pretrained.read(tmp_path, stated)
    assert (stated_model.diffusion.schedule, stated_model.diffusion.steps) == ("cosine", 50)
    assert stated_model.assumed == ()


def test_every_tensor_of_a_published_size_has_its_place():
    """The CelebA network of ddim at full size, by names alone: 5 levels, attention at 16 pixels."""
    config = {"model": {"ch": 128, "ch_mult": [1, 2, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16]}}
    model, data, _, _ = ddim._sections(config | {"data": {"image_size": 64}})
    table = ddim.names(ddim.unet_config(model, data))
    assert (
        len(set(table.values())) == len(table) == len(tensors.parameter_shapes(ddim.unet_config(model, data)))
    )
    for name in ("down.2.attn.1.q.weight", "mid.block_2.temb_proj.bias", "up.4.upsample.conv.weight"):
        assert name in table.values()
    assert (
        "up.2.attn.2.proj_out.weight" in table.values()
        and "down.4.downsample.conv.weight" not in table.values()
    )
