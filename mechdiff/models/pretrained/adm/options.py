"""Flags of ADM networks: their types, their defaults, and those without effect here."""

import re
from collections.abc import Iterable
from typing import Any

from mechdiff.core.config import MAX_STEPS
from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained.files.options import (
    Option,
    boolean,
    choice,
    integer,
    listed,
    number,
    optional,
)

STEM = "model"
WEIGHTS = f"{STEM}.safetensors"
WHAT = "guided-diffusion"
STATED = ("weights", "dialect", "noise_schedule", "noise_steps", "prediction", "rescale_timesteps")
STATED += ("condition", "null_class", "beta_start", "beta_end")  # the last two of other programs' schedules
DIALECTS = {"guided-diffusion": False, "improved-diffusion": True}  # defaults of rescale_timesteps
WHOLE = integer(text=True)
HEADS = integer(text=True, also=(-1,))
BOOLEAN = boolean(text=True)
TABLE = {  # defaults of both programs' script_util.py; None: inferred from the tensors
    "image_size": Option(64, WHOLE),
    "in_channels": Option(None, WHOLE),
    "out_channels": Option(None, WHOLE),
    "num_channels": Option(None, WHOLE),
    "num_res_blocks": Option(None, listed(WHOLE, text=True)),
    "num_heads": Option(4, HEADS),
    "num_heads_upsample": Option(-1, HEADS),
    "num_head_channels": Option(-1, HEADS),
    "attention_resolutions": Option(None, listed(WHOLE, text=True, empty=True)),
    "channel_mult": Option("", listed(number(1e-9, text=True), text=True, also=("",))),
    "dropout": Option(0.0, number(0.0, text=True)),
    "class_cond": Option(None, BOOLEAN),
    "num_classes": Option(None, optional(WHOLE)),
    "use_scale_shift_norm": Option(None, BOOLEAN),
    "resblock_updown": Option(None, BOOLEAN),
    "conv_resample": Option(True, BOOLEAN),
    "dims": Option(2, WHOLE, (2,)),
    "use_new_attention_order": Option(False, BOOLEAN),
    "use_spatial_transformer": Option(False, BOOLEAN, (False,)),
    "learn_sigma": Option(None, BOOLEAN),
    "diffusion_steps": Option(1000, integer(2, MAX_STEPS, text=True)),
    "noise_schedule": Option("linear", choice("linear", "cosine"), ("linear", "cosine")),
    "predict_xstart": Option(False, BOOLEAN),
    "model_mean_type": Option("epsilon", choice("epsilon"), ("epsilon", "start_x")),
    "rescale_timesteps": Option(None, BOOLEAN),
    "large_size": Option(None, optional(WHOLE)),  # of super-resolution: conditioned on the smaller image
    "small_size": Option(None, optional(WHOLE)),
}
ALIASES = {"model_channels": "num_channels", "steps": "diffusion_steps"}
# Parts of names of options that decide noise levels or predictions, or name a file that may: these are asked
# about, unless they are known (`schedule_sampler`), or name a folder, weights or a classifier.
DECIDING = r"config|cfg|schedul|beta|timestep|objective|parametri|parameteri"
DECIDING += r"|(diffusion|pred)(?!.*(dir|root|model_path)$)"
IGNORED = (  # of training, sampling, files and classifiers
    *("use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small", "model_var_type"),
    *("p2_gamma", "p2_k", "timestep_respacing", "use_ddim", "clip_denoised", "dynamic_threshold", "sampler"),
    *("lr", "lr_anneal_steps", "weight_decay", "batch_size", "microbatch", "ema_rate", "schedule_sampler"),
    *("log_interval", "save_interval", "resume_checkpoint", "fp16_scale_growth", "iterations", "anneal_lr"),
    *("num_samples", "num_workers", "eval_interval", "eta", "seed", "device", "gpu", "range_t", "n", "name"),
    *("base_samples", "s_churn", "s_tmin", "s_tmax", "s_noise", "distillation", "begin", "end", "ref_batch"),
    *("classifier_.*", "eval_.*", "wandb.*", "(log|save)_.*"),
    *("(.*_)?(lr|adam|optim)(_.*|izer.*)?", "(.*_)?beta[12]"),
    rf"(?!.*({DECIDING}))((data|sample_|train_).*|(.*_)?(path|dir|root|file|name))",
)


def ignored(name: Any) -> bool:
    """Whether an option has no bearing on the network."""
    return isinstance(name, str) and any(re.fullmatch(pattern, name) for pattern in IGNORED)


def check_deciding(names: Iterable[Any]) -> None:
    """Refuses options that are not known, and by name decide noise levels or predictions."""
    for name in names:
        recognized = name in (*TABLE, *ALIASES) or ignored(name)
        if not recognized and isinstance(name, str) and re.search(DECIDING, name):
            raise ConfigError(
                f"{WHAT} option {shorten(name)} is unknown and may decide noise levels or predictions; write "
                "what it stands for (noise_schedule, diffusion_steps, predict_xstart, ...), or state it "
                "(--prediction=v_prediction, ...), and take it out"
            )


DECISIVE = ("diffusion_steps", "noise_schedule", "predict_xstart", "use_new_attention_order", "image_size")
UNTOLD = (
    *DECISIVE,
    "rescale_timesteps",
    "model_mean_type",
    "large_size",
)  # by any tensor, so left to defaults
UNTOLD += ("num_heads", "num_heads_upsample", "num_head_channels")
UNTOLD += ("training_mode", "sigma_min", "sigma_max", "rho")  # of consistency models


def at_default(name: str, value: Any) -> bool:
    """Whether an option is given the value that it has anyway; never an error.

    Example:
      >>> at_default("num_heads", "4"), at_default("num_heads", "x"), at_default("unknown", "4")
      (True, False, False)
    """
    option = TABLE.get(name)
    try:
        return option is not None and option.type.read(value) == option.default
    except (ValueError, TypeError, OverflowError):
        return False


ASKED = {"noise_schedule": "noise_schedule", "diffusion_steps": "noise_steps"}
NUM_CLASSES = 1000  # of both programs, ImageNet's
LABELS = "label_emb.weight"
ANCHOR = "input_blocks.0.0.weight"
LAST = ("out.2.weight", "out.2.bias")
