"""denoising_diffusion_pytorch's `Unet` (lucidrains), releases 1.9 to 2, as its users save it.

A folder holds `model.safetensors` (the network, a `GaussianDiffusion`, or a trainer's average of one) and a
config: `{"image_size": 32}` is enough where the file holds the buffers of `GaussianDiffusion` (and `channels`
where the tensors leave them open, as with 6 in and out). Widths, levels, heads and their depth, kinds of
attention, self-conditioning and learned variances are inferred from the tensors; noise levels and the
objective from the buffers `betas` and `loss_weight`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechdiff.core.config import MAX_STEPS, DiffusionConfig
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.pretrained import foreign
from mechdiff.models.pretrained.files import states, tensors
from mechdiff.models.pretrained.files.fit import check_fit, misfit
from mechdiff.models.pretrained.files.folders import ForeignFolder
from mechdiff.models.pretrained.files.options import (
    Option,
    anything,
    boolean,
    choice,
    integer,
    listed,
    mapped,
    number,
    optional,
    read_options,
)
from mechdiff.models.pretrained.imported import ImportedFunction, Stated
from mechdiff.models.pretrained.lucidrains.init import initializer
from mechdiff.models.pretrained.lucidrains.network import Network
from mechdiff.models.pretrained.lucidrains.noise_levels import (
    OBJECTIVES,
    SCHEDULES,
    WHAT,
    noise_levels,
    objective,
    trained_with_variances,
)
from mechdiff.models.pretrained.lucidrains.tensors import ANCHOR, GROUPS, USUAL_GROUPS, options_of
from mechdiff.models.traced import TracedDenoiser, wrap

STATED = ("weights", "noise_schedule", "noise_steps", "prediction")
WHOLE = integer(text=True)
TABLE = {  # arguments of Unet and GaussianDiffusion
    "image_size": Option(None, listed(WHOLE, text=True)),
    "dim": Option(None, optional(WHOLE)),
    "dim_mults": Option(None, listed(WHOLE, text=True)),
    "channels": Option(None, WHOLE),
    "self_condition": Option(None, boolean(text=True)),
    "learned_variance": Option(None, boolean(text=True)),
    "attn_heads": Option(None, listed(WHOLE, text=True)),
    "attn_dim_head": Option(None, listed(WHOLE, text=True)),
    "full_attn": Option(None, listed(boolean(text=True), also=(None,))),
    "resnet_block_groups": Option(None, optional(WHOLE)),
    "sinusoidal_pos_emb_theta": Option(10000.0, number(1.0, text=True)),
    "objective": Option(None, choice(*OBJECTIVES), (None, *OBJECTIVES)),
    "beta_schedule": Option(None, choice(*SCHEDULES), (None, *SCHEDULES)),
    "timesteps": Option(None, integer(2, MAX_STEPS, text=True)),
    "auto_normalize": Option(True, boolean(text=True), (True,)),
    "immiscible": Option(False, anything(), (False, True)),
    "schedule_fn_kwargs": Option({}, mapped(number())),
}
IGNORED = (
    "init_dim", "out_dim", "dropout", "flash_attn", "learned_sinusoidal.*", "random_fourier_features",
    "sampling_timesteps", "ddim_sampling_eta", "offset_noise_strength", "min_snr.*", "_class_name",
    "train_.*", "ema_.*", "gradient_.*", "batch_size", "results_folder", "amp", "fp16", "num_samples",
    "vb_loss_weight",
)  # fmt: skip
TELLING = ("dim_mults", "attn_dim_head", "full_attn", "objective", "self_condition")
BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "loss_weight",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
RMS = "downs.0.0.block1.norm.g"
MEMORY = "mid_attn.mem_kv"
FREQUENCIES = "time_mlp.0.weights"  # random or learned
CLASSES = "classes_emb.weight"  # of its classifier_free_guidance
NOT_IMAGES = {3: "signals (1D)", 5: "videos (3D)"}  # by axes of a kernel
UNBIASED = r"\.(to_qkv|to_out)\.weight$"  # full attention's `to_out` has one in some releases only


def recognizes(config: Mapping[str, Any]) -> bool:
    """Whether a config is of this layout: it has a word that no other has, or no word but this layout's."""
    return any(name in config for name in TELLING) or ("image_size" in config and set(config) <= set(TABLE))


def read(source: ForeignFolder, stated: Stated) -> ImportedFunction:
    """The model in the folder `source`; errors as `pretrained.read`."""
    get = read_options(source.config, TABLE, what=WHAT, ignored=IGNORED)
    if get["image_size"] is None:
        raise ConfigError(f"{WHAT} option image_size is absent; write the side of the images")
    path, notes = states.weight_file(source.home, "model", stated.weights)
    state, dtype = tensors.load(path)
    weights = stated.weights if stated.weights in ("raw", "ema") else None
    state, wrapping = states.unwrapped(state, ANCHOR, weights, path)
    buffers, state = _buffers(state, path)
    _check_kind(state, path)
    _check_release(state, path)
    with misfit(path, WHAT):
        options = options_of(get, state, path)
    check_fit(_network(options), state, _example(options), path, WHAT, UNBIASED)
    _check_levels(state, buffers, path)
    diffusion, levels = noise_levels(get, buffers, stated)
    doubled = len(state["final_conv.weight"]) == 2 * options["channels"]
    objective_note, prediction = (trained_with_variances if doubled else objective)(get, buffers, stated)
    notes = [*source.notes, *notes, *wrapping, levels, objective_note]
    if options["self_condition"]:
        notes.append(
            "self-conditioned: examined without an earlier estimate, as in the first step of sampling"
        )
    usual = {} if FREQUENCIES in state else {"sinusoidal_pos_emb_theta": 10000.0}
    usual |= {"resnet_block_groups": USUAL_GROUPS} if GROUPS in state else {}
    assumed = states.summary({name: value for name, value in usual.items() if name not in get.stated})
    if assumed:
        notes.append(f"ASSUMED: {', '.join(assumed)}, the package's own, which no tensor tells")
    return ImportedFunction(
        WHAT,
        options | {"prediction": prediction},
        state,
        diffusion,
        dtype,
        tuple(filter(None, notes)),
        assumed,
    )


def build(
    options: Mapping[str, Any], params: PyTree, diffusion: DiffusionConfig, name: str
) -> TracedDenoiser:
    """The denoiser made from `ImportedFunction.options`, as read or as saved."""
    network, example = _network(options), _example(options)
    schedule = make_schedule(diffusion)
    kind = options["prediction"]
    return wrap(
        network,
        params,
        schedule=schedule,
        example=example,
        name=name,
        parameterization=kind,
        init=initializer(params),
    )


def _network(options: Mapping[str, Any]) -> Network:
    return Network(
        levels=options["levels"],
        channels=options["channels"],
        self_condition=options["self_condition"],
        theta=options["theta"],
        groups=options.get("groups", USUAL_GROUPS),
    )


def _example(options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    size, channels = options["image_size"], options["channels"]
    return np.zeros((1, size, size, channels), np.float32), np.zeros(1, np.int32)


def _buffers(state: tensors.State, path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tables of `GaussianDiffusion` by their own names, which an average holds twice, and the rest.

    Raises:
      CheckpointError: the two are not alike.
    """
    buffers, rest, first = {}, {}, {}
    for name, value in state.items():
        *wrappers, last = name.split(".")
        if last not in BUFFERS or not all(map(states.wraps, wrappers)):
            rest[name] = value
        elif not np.array_equal(buffers.setdefault(last, value), value):
            raise CheckpointError(
                f"{path}: {first[last]} and {name} differ: two networks of other noise levels or objectives; "
                "keep the tensors of one of them"
            )
        else:
            first.setdefault(last, name)
    return buffers, rest


def _check_levels(state: tensors.State, buffers: Mapping[str, np.ndarray], path: Path) -> None:
    """The package's trainers of continuous noise levels ask for random or learned frequencies; the one of
    numbered timesteps refuses them."""
    if FREQUENCIES in state and "betas" not in buffers:
        raise ConfigError(
            f"{path} has {FREQUENCIES} and no betas: trained on continuous noise levels, it takes a log-SNR "
            "instead of a timestep, which is not read"
        )


def _check_kind(state: tensors.State, path: Path) -> None:
    """Refuses the package's networks of signals and videos, and those with classes: their tensors have the
    names of its early releases."""
    shape = state[ANCHOR].shape if ANCHOR in state else ()
    if len(shape) in (3, 5):
        raise ConfigError(
            f"{path} has {ANCHOR} of shape {shape}: a network of {NOT_IMAGES[len(shape)]}, not images"
        )
    if CLASSES in state:
        raise ConfigError(f"{path} has {CLASSES}: a Unet with classes, which is not read; {foreign.WAY_OUT}")


def _check_release(state: tensors.State, path: Path) -> None:
    wrapped = any(".fn." in name and ".to_qkv." in name for name in state)
    if wrapped or (GROUPS in state and MEMORY not in state):
        raise ConfigError(
            f"{path} is of a release of denoising_diffusion_pytorch before 1.9, which is not read: whether "
            "convolutions standardize their weights, and how many heads there are, leaves no trace in tensors"
        )
    if RMS not in state and GROUPS not in state:
        raise CheckpointError(
            f"{path} has no {RMS}: no Unet of denoising_diffusion_pytorch 1.9 or later (of its networks, "
            f"KarrasUnet and UViT are not read); {foreign.WAY_OUT}"
        )
