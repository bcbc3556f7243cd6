"""Imported networks against diffusers in PyTorch itself (frozen twins: `test_unet.py`, `test_interop.py`).

Skipped without the `torch` extra. The published networks, at full width with random weights, are slow tests.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from reference.networks import identity_of, random_params

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.presets import preset
from mechdiff.models import pretrained
from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.models.unet import apply_unet

torch = pytest.importorskip("torch", reason="needs the torch extra")
diffusers = pytest.importorskip("diffusers", reason="needs the torch extra")
save_file = pytest.importorskip("safetensors.torch").save_file

DOWN, UP, ATTN_DOWN, ATTN_UP = "DownBlock2D", "UpBlock2D", "AttnDownBlock2D", "AttnUpBlock2D"
SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": (DOWN, ATTN_DOWN),
    "up_block_types": (ATTN_UP, UP),
}
HO = {  # Ho et al. 2020, as google/ddpm-* publish them
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "norm_eps": 1e-6,
}
LARGE = HO | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (DOWN, DOWN, DOWN, DOWN, ATTN_DOWN, DOWN),
    "up_block_types": (UP, ATTN_UP, UP, UP, UP, UP),
}
CIFAR = HO | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": (DOWN, ATTN_DOWN, DOWN, DOWN),
    "up_block_types": (UP, UP, ATTN_UP, UP),
}
FILM = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4}
RESNET = {"downsample_type": "resnet", "upsample_type": "resnet", "attention_head_dim": 4}
SLOW = pytest.mark.slow
MODELS = {
    "residual_resampling": SMALL
    | RESNET
    | FILM
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", ATTN_DOWN),
        "up_block_types": (ATTN_UP, "ResnetUpsampleBlock2D"),
    },
    "defaults": SMALL,
    "one_head": SMALL | HO,
    "narrow_heads": SMALL | {"attention_head_dim": 2, "down_block_types": (ATTN_DOWN, ATTN_DOWN)},
    "attention_off_the_middle": SMALL | {"add_attention": False, "attention_head_dim": 8},
    "no_attention": SMALL
    | {"add_attention": False, "down_block_types": (DOWN, DOWN), "up_block_types": (UP, UP)},
    "film": SMALL | FILM,
    "film_without_a_norm_in_the_middle": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "other_groups_in_the_middle": SMALL | {"attn_norm_num_groups": 2},
    "heads_that_do_not_fill_the_channels": SMALL | {"attention_head_dim": 5},
    "mixed_resampling": SMALL
    | {"block_out_channels": (8, 16, 16), "downsample_type": "resnet", "upsample_type": None}
    | {"down_block_types": (DOWN, ATTN_DOWN, DOWN), "up_block_types": ("ResnetUpsampleBlock2D", ATTN_UP, UP)},
    "oldest_names": SMALL
    | {"down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D")}
    | {"up_block_types": ("UNetResAttnUpBlock2D", "UNetResUpBlock2D")},
    "centered": SMALL | {"center_input_sample": True, "in_channels": 1, "out_channels": 1},
    "no_middle": SMALL | {"mid_block_type": None, "act_fn": "relu", "mid_block_scale_factor": 2.0},
    "another_activation": SMALL
    | {"act_fn": "gelu", "mid_block_scale_factor": 1.5, "time_embedding_dim": 20, **FILM},
    "time_width": SMALL | {"time_embedding_dim": 16, "flip_sin_to_cos": False, "norm_eps": 1e-3},
    "three_levels": SMALL
    | {"block_out_channels": (8, 8, 16), "layers_per_block": 3, "downsample_padding": 0}
    | {"down_block_types": (DOWN, ATTN_DOWN, DOWN), "up_block_types": (ATTN_UP, UP, UP)},
    "ddpm-cifar10-32": CIFAR,
    "ddpm-celebahq-256": LARGE,
    "ddpm-church-256": LARGE,
}
QUICK = ("residual_resampling",)  # the others have frozen twins, or take longer


def random_model(arguments: dict, seed: int = 0):
    """A `UNet2DModel` with random weights."""
    return randomized(diffusers.UNet2DModel(**arguments).eval(), seed)


def randomized(model, seed: int = 0):
    """The model with random weights of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            new = rng.standard_normal(value.shape, np.float32)
            if name.endswith("weight") and value.ndim > 1:
                new /= np.sqrt(np.prod(value.shape[1:]))
            else:
                new = 0.2 * new + name.endswith("weight")
            value.copy_(torch.from_numpy(new))
    return model


@functools.partial(jax.jit, static_argnums=0)
def pulled_back(config, params, identity, x, t, towards):
    """Output, and the gradient of its product with `towards` with respect to the input."""
    output, pull = jax.vjp(lambda x: apply_unet(config, params, identity, x, t), x)
    return output, pull(towards)[0]


def differences(arguments: dict, folder) -> tuple[float, float]:
    """Largest difference of output and of input gradient, each over the largest value there."""
    model, rng = random_model(arguments), np.random.default_rng(1)
    model.save_pretrained(folder)
    result = pretrained.read(folder)
    side = model.config.sample_size
    shape = lambda channels: (1 if side > 64 else 2, channels, side, side)
    x = torch.from_numpy(rng.standard_normal(shape(model.config.in_channels), np.float32)).requires_grad_()
    towards = rng.standard_normal(shape(model.config.out_channels), np.float32)
    t = np.array([3, 987], np.int32)[: len(x)]
    output = model(x, torch.from_numpy(t)).sample
    output.backward(torch.from_numpy(towards))
    nhwc = lambda a: np.moveaxis(a, 1, -1)
    ours = pulled_back(
        result.unet, result.params, identity_of(result.unet), nhwc(x.detach().numpy()), t, nhwc(towards)
    )
    theirs = (nhwc(output.detach().numpy()), nhwc(x.grad.numpy()))
    return tuple(float(np.abs(a - b).max() / b.std()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in MODELS])
def test_output_and_input_gradient_equal_those_of_torch(name, tmp_path):
    forward, gradient = differences(MODELS[name], tmp_path)
    print(f"{name}: forward {forward:.1e}, gradient {gradient:.1e}")
    assert forward < 1e-4
    assert gradient < 1e-3


@pytest.mark.slow
def test_the_network_of_p2_weighting_equals_that_of_torch(tmp_path):
    """At full size; needs github.com/openai/guided-diffusion on the path."""
    script = pytest.importorskip("guided_diffusion.script_util", reason="needs a clone of guided-diffusion")
    flags = json.loads((Path(__file__).parents[2] / "reference" / "adm_p2_shapes.json").read_text())["config"]
    model = randomized(script.create_model(**flags).eval())
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        tmp_path / adm_options.WEIGHTS,
    )
    (tmp_path / "config.json").write_text(json.dumps(flags))
    result, rng = pretrained.read(tmp_path), np.random.default_rng(1)
    x, t = rng.standard_normal((1, 256, 256, 3), np.float32), np.array([321], np.int32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(np.moveaxis(x, -1, 1)), torch.from_numpy(t))[:, :3].numpy()
    theirs = np.moveaxis(theirs, 1, -1)
    ours = jax.jit(apply_unet, static_argnums=0)(result.unet, result.params, identity_of(result.unet), x, t)
    difference = float(np.abs(ours - theirs).max() / theirs.std())
    print(f"P2 weighting: forward {difference:.1e}")
    assert difference < 1e-4


def test_the_round_trip_through_the_library_itself_is_bitwise(tmp_path):
    """Ours -> files -> diffusers -> files -> ours, parameters, config and noise levels."""
    unet, diffusion = preset("tiny").unet, DiffusionConfig(schedule="cosine", steps=50)
    params = random_params(unet)
    pretrained.write_diffusers(tmp_path / "ours", unet, diffusion, params)
    model = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours")
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    scheduler.save_pretrained(tmp_path / "theirs")
    first, second = (pretrained.read(tmp_path / name) for name in ("ours", "theirs"))
    assert (first.unet, first.diffusion) == (second.unet, second.diffusion)
    assert second.diffusion == diffusion
    jax.tree.map(np.testing.assert_array_equal, second.params, params)
    np.testing.assert_allclose(second.schedule.alphas_bar, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
