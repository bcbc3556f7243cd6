"""Networks that are known by name but not read, and what to do instead."""

from collections.abc import Mapping
from typing import Any

from mechdiff.models.pretrained.files.configs import option_names

WAY_OUT = "write it as a JAX function and wrap that (mechdiff.models.traced)"
NETWORKS = (  # options that only their config has, and what they are
    (("first_stage_config", "cond_stage_config", "unet_config"), "a latent diffusion model"),
    (("sigma_sample_density", "augment_wrapper", "self_attn_depths"), "a network of k-diffusion"),
    (("attention_levels", "spatial_dims"), "a network of MONAI"),
    (("scale_by_sigma", "skip_rescale", "progressive_input"), "a network of score_sde"),
)


def unsupported(config: Mapping[str, Any]) -> str:
    """The unsupported network that a config describes, and the way out; empty if it is none of these."""
    names = option_names(config)
    for telling, what in NETWORKS:
        options = [option for option in telling if option in names]
        if options:
            return f"{what} (by its option {options[0]}), which is not read; {WAY_OUT}"
    return ""
