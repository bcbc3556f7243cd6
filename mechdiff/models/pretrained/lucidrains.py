"""denoising_diffusion_pytorch's `Unet` (lucidrains), release 2, as its users save it.

A folder holds `model.safetensors` (the network, a `GaussianDiffusion`, or a trainer's average of one) and a
config: `{"image_size": 32}` is enough where the file holds the buffers of `GaussianDiffusion`. Widths,
levels, heads and their depth, kinds of attention, self-conditioning and learned variances are read off the
tensors; noise levels and the objective off the buffers `betas` and `loss_weight`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import CheckpointError, ConfigError, shorten
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.pretrained import states, tensors
from mechdiff.models.pretrained.folders import Place
from mechdiff.models.pretrained.imported import Imported, ImportedFunction, Stated
from mechdiff.models.pretrained.lucidrains_network import Network
from mechdiff.models.pretrained.options import (
    Option,
    Options,
    anything,
    boolean,
    choice,
    integer,
    listed,
    number,
    optional,
    read_options,
)
from mechdiff.models.pretrained.schedulers import from_betas
from mechdiff.models.traced import TracedDenoiser, wrap

WHAT = "lucidrains"
WHOLE = integer(text=True)
OBJECTIVES = {"pred_noise": "epsilon", "pred_v": "v_prediction", "pred_x0": "sample"}
SCHEDULES = ("linear", "cosine", "sigmoid")
TABLE = {  # arguments of Unet and GaussianDiffusion
    "image_size": Option(None, WHOLE),
    "dim": Option(None, optional(WHOLE)),
    "dim_mults": Option(None, listed(WHOLE, text=True)),
    "channels": Option(None, WHOLE),
    "self_condition": Option(None, boolean(text=True)),
    "learned_variance": Option(None, boolean(text=True)),
    "attn_heads": Option(None, listed(WHOLE, text=True)),
    "attn_dim_head": Option(None, listed(WHOLE, text=True)),
    "full_attn": Option(None, listed(boolean(text=True), also=(None,))),
    "sinusoidal_pos_emb_theta": Option(10000.0, number(1.0, text=True)),
    "objective": Option(None, choice(*OBJECTIVES), (None, *OBJECTIVES)),
    "beta_schedule": Option(None, choice(*SCHEDULES), (None, *SCHEDULES)),
    "timesteps": Option(None, integer(2, text=True)),
    "auto_normalize": Option(True, boolean(text=True), (True,)),
    "immiscible": Option(False, anything(), (False, True)),
    "schedule_fn_kwargs": Option(None, anything(), (None, {})),
}
IGNORED = ("init_dim", "out_dim", "dropout", "flash_attn", "learned_sinusoidal.*", "random_fourier_features")
IGNORED += ("sampling_timesteps", "ddim_sampling_eta", "offset_noise_strength", "min_snr.*", "_class_name")
IGNORED += ("train_.*", "ema_.*", "gradient_.*", "batch_size", "results_folder", "amp", "fp16", "num_samples")
TELLING = ("dim_mults", "attn_dim_head", "full_attn", "objective", "self_condition")
BUFFERS = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "loss_weight")
BUFFERS += ("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod")
BUFFERS += ("sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped")
BUFFERS += ("posterior_mean_coef1", "posterior_mean_coef2")
PROBE = "init_conv.weight"
RMS, GROUPS = "downs.0.0.block1.norm.g", "downs.0.0.block1.norm.bias"


def recognizes(config: Mapping[str, Any]) -> bool:
    """Whether a config is of this layout: it has a word that no other has, or the image's side alone."""
    return any(name in config for name in TELLING) or set(config) == {"image_size"}


def read(place: Place, stated: Stated) -> ImportedFunction:
    """The model at `place`; errors as `pretrained.read`."""
    get = read_options(place.config, TABLE, what=WHAT, ignored=IGNORED)
    if get["image_size"] is None:
        raise ConfigError(f"{WHAT} option image_size is absent; write the side of the pictures")
    _refuse_statements(stated)
    path, notes = states.weight_file(place.home, "model", stated.weights)
    state, dtype = tensors.load(path)
    weights = stated.weights if stated.weights in ("raw", "ema") else None
    state, wrapping = states.unwrapped(state, PROBE, weights, path)
    buffers, state = _buffers(state)
    _check_release(state, path)
    options = _options(get, state, path)
    _check_shapes(state, options, path)
    diffusion, levels = _noise_levels(get, buffers, stated)
    objective, prediction = _objective(get, buffers, stated)
    notes = [*place.notes, *notes, *wrapping, levels, objective]
    if options["self_condition"]:
        notes.append("self-conditioned: examined without an earlier estimate, as in the first step of sampling")
    assumed = () if "sinusoidal_pos_emb_theta" in get.stated else ("sinusoidal_pos_emb_theta=10000.0",)
    assumed = () if "time_mlp.0.weights" in state else assumed
    if assumed:
        notes.append(f"ASSUMED: {assumed[0]}, the package's own, which no tensor tells")
    return ImportedFunction(
        WHAT, options | {"prediction": prediction}, state, diffusion, dtype, tuple(filter(None, notes)), assumed
    )


def build(options: Mapping[str, Any], params: PyTree, diffusion: DiffusionConfig, name: str) -> TracedDenoiser:
    """The denoiser of `ImportedFunction.options`, or of what was saved of them."""
    size, channels = options["image_size"], options["channels"]
    network = Network(options["levels"], channels, options["self_condition"], options["theta"])
    example = (np.zeros((1, size, size, channels), np.float32), np.zeros(1, np.int32))
    schedule = make_schedule(diffusion)
    kind = options["prediction"]
    return wrap(network, params, schedule=schedule, example=example, name=name, parameterization=kind)


def _refuse_statements(stated: Stated) -> None:
    for name in ("dialect", "beta_start", "beta_end", "rescale_timesteps", "condition", "null_class"):
        if getattr(stated, name) is not None:
            raise ConfigError(f"--{name}: a Unet of {WHAT} has no such thing; leave it out")


def _buffers(state: tensors.State) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tables of `GaussianDiffusion` by their own names, which an average holds twice, and the rest."""
    buffers, rest = {}, {}
    for name, value in state.items():
        *wrappers, last = name.split(".")
        is_buffer = last in BUFFERS and all(word in states.WRAPPERS for word in wrappers)
        (buffers if is_buffer else rest)[last if is_buffer else name] = value
    return buffers, rest


def _check_release(state: tensors.State, path: Path) -> None:
    if RMS in state:
        return
    old = any(".fn." in name and ".to_qkv." in name for name in state)
    if GROUPS in state or old:
        raise ConfigError(
            f"{path} is of a release of denoising_diffusion_pytorch before 2 (group norms), which is not read; "
            "only release 2 (RMS norms) is"
        )
    raise CheckpointError(f"{path} has no {RMS}: no Unet of denoising_diffusion_pytorch 2")


def _options(get: Options, state: tensors.State, path: Path) -> dict[str, Any]:
    """What makes the network, JSON-ready; a config that says otherwise than the tensors is refused."""
    levels = sum(f"downs.{level}.0.block1.proj.weight" in state for level in range(len(state)))
    for name in (PROBE, "final_conv.weight", "time_mlp.3.weight"):
        if name not in state:
            raise CheckpointError(f"{path} does not fit {WHAT}: 1 missing: {name}")
    joined, outputs = state[PROBE].shape[1], len(state["final_conv.weight"])
    channels, self_condition = _channels(get, joined, outputs)
    attentions = [f"downs.{level}.2" for level in range(levels)]
    memory = {name: state[f"{name}.mem_kv"].shape for name in attentions if f"{name}.mem_kv" in state}
    full = [f"{name}.to_out.weight" in state for name in memory]
    dim = len(state["time_mlp.3.weight"]) // 4
    widths = [len(state[f"downs.{level}.3{'' if level == levels - 1 else '.1'}.weight"]) for level in range(levels)]
    told = {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "channels": channels,
        "self_condition": self_condition,
        "learned_variance": outputs == 2 * channels,
        "attn_heads": tuple(shape[1] for shape in memory.values()),
        "attn_dim_head": tuple(shape[3 if f else 2] for shape, f in zip(memory.values(), full)),
        "full_attn": tuple(full),
    }
    for name, value in told.items():
        stated = get[name]
        single = isinstance(value, tuple) and isinstance(stated, tuple) and len(stated) == 1
        stated = stated * len(value) if single else stated
        if stated not in (None, value, (None,) * levels):
            raise ConfigError(f"{WHAT} option {name}={shorten(get[name])}, but the tensors say {value}")
    side = get["image_size"]
    if side % 2 ** (levels - 1):
        raise ConfigError(f"{WHAT} option image_size={side} is not divisible by {2 ** (levels - 1)}")
    ours = {"levels": levels, "image_size": side, "channels": channels, "self_condition": self_condition}
    return ours | {"theta": get["sinusoidal_pos_emb_theta"]}


def _channels(get: Options, joined: int, outputs: int) -> tuple[int, bool]:
    """Channels of an image, and whether the input is joined with an earlier estimate of it."""
    fits = [c for c in {joined, joined // 2} if joined in (c, 2 * c) and outputs in (c, 2 * c)]
    if get["channels"] is not None:
        fits = [c for c in fits if c == get["channels"]]
    fits = [c for c in fits if c in (1, 3)] or fits
    if len(fits) != 1 or fits[0] not in (1, 3):
        raise ConfigError(
            f"{WHAT}: {joined} channels in and {outputs} out, channels={get['channels']}: state channels "
            "(1 or 3; latents are not pictures)"
        )
    return fits[0], joined == 2 * fits[0]


class _Read(dict):
    """Tensors that remember which of them were taken."""

    def __init__(self, tensors_: Mapping[str, Any]):
        super().__init__(tensors_)
        self.taken = set()

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return super().__getitem__(name)


def _check_shapes(state: tensors.State, options: Mapping[str, Any], path: Path) -> None:
    """That the network takes every tensor and finds each, and that their shapes fit one another."""
    network = Network(options["levels"], options["channels"], options["self_condition"], options["theta"])
    check_fit(network, state, options, path)


def check_fit(network: Any, state: tensors.State, options: Mapping[str, Any], path: Path) -> None:
    """That `network(tensors, x, t)` finds every tensor, takes each, and that their shapes fit.

    Raises:
      CheckpointError: in one line.
    """
    size, channels = options["image_size"], options["channels"]
    read = _Read({name: jnp.asarray(value) for name, value in state.items()})
    x, t = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    try:
        jax.eval_shape(lambda x, t: network(read, x, t), x, t)
    except KeyError as error:
        raise CheckpointError(f"{path} does not fit {WHAT}: 1 missing: {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: shapes of tensors don't fit ({str(error).strip().splitlines()[0][:100]})") from None
    unused = sorted(set(state) - read.taken)
    odd = [n for n, a in state.items() if n.endswith(".bias") and a.shape != state[n[:-4] + "weight"].shape[:1]]
    if unused or odd:
        listed_ = ", ".join((unused or odd)[:4])
        raise CheckpointError(f"{path} does not fit {WHAT}: {'unused' if unused else 'wrong shapes'}: {listed_}")


def _noise_levels(get: Options, buffers: Mapping, stated: Stated) -> tuple[DiffusionConfig, str]:
    """Those of the buffer `betas`; or by name, from the config or the statements, all of which must agree."""
    names = {get["beta_schedule"], stated.noise_schedule} - {None}
    steps = {get["timesteps"], stated.noise_steps} - {None}
    if len(names) > 1 or len(steps) > 1:
        raise ConfigError(f"{WHAT}: what is stated of the noise levels contradicts the config: {names | steps}")
    if "betas" in buffers:
        betas = np.asarray(buffers["betas"], np.float64)
        if steps - {len(betas)}:
            raise ConfigError(f"{WHAT} option timesteps={steps.pop()}, but the file has {len(betas)} betas")
        for name in names:
            if not np.allclose(betas, betas_of(name, len(betas)), rtol=1e-4, atol=1e-9):
                raise ConfigError(f"{WHAT} option beta_schedule={name}, but the file's betas are others")
        return from_betas(betas), "noise levels are those of the file's betas"
    if not names or not steps:
        raise ConfigError(
            f"{WHAT}: the file has no betas (a bare Unet): state beta_schedule ({', '.join(SCHEDULES)}) and "
            "timesteps in the config"
        )
    name = names.pop()
    if name not in SCHEDULES:
        raise ConfigError(f"{WHAT} noise schedule {shorten(name)} is not known; known: {', '.join(SCHEDULES)}")
    return from_betas(betas_of(name, steps.pop())), ""


def betas_of(name: str, steps: int) -> np.ndarray:
    """The package's schedules: linear scaled to `steps`, cosine, and sigmoid (start -3, end 3, tau 1)."""
    if name == "linear":
        return np.linspace(0.1 / steps, 20 / steps, steps)
    fraction = np.arange(steps + 1) / steps
    if name == "cosine":
        bar = np.cos((fraction + 0.008) / 1.008 * np.pi / 2) ** 2
    else:
        low, high = 1 / (1 + np.exp(3.0)), 1 / (1 + np.exp(-3.0))
        bar = (high - 1 / (1 + np.exp(-(6 * fraction - 3)))) / (high - low)
    return np.clip(1 - bar[1:] / bar[:-1], 0, 0.999)


def _objective(get: Options, buffers: Mapping, stated: Stated) -> tuple[str, str]:
    """A note, and what the network outputs: by the weights of the loss, else as the config or flags say."""
    told = {OBJECTIVES.get(get["objective"]), stated.prediction, _by_loss_weight(buffers)} - {None}
    if len(told) > 1:
        raise ConfigError(f"{WHAT}: objective is told as {' and '.join(sorted(told))}; they contradict")
    if not told:
        raise ConfigError(
            f"{WHAT} option objective is absent, and no tensor tells it: write {' or '.join(OBJECTIVES)}"
        )
    by_file = get["objective"] is None and stated.prediction is None
    prediction = told.pop()
    return (f"the weights of its loss are those of {prediction}" if by_file else ""), prediction


def _by_loss_weight(buffers: Mapping) -> str | None:
    """Which output the buffer `loss_weight` belongs to: 1, snr or snr / (snr + 1), where snr is below 1, as the
    weights may be cut above."""
    if not {"loss_weight", "alphas_cumprod"} <= set(buffers):
        return None
    weight, bar = (np.asarray(buffers[name], np.float64) for name in ("loss_weight", "alphas_cumprod"))
    snr = bar / np.maximum(1 - bar, 1e-12)
    expected = {"epsilon": np.ones_like(snr), "sample": snr, "v_prediction": snr / (snr + 1)}
    below = (snr < 1) & (snr > 1e-3)
    fits = [k for k, e in expected.items() if below.any() and np.allclose(weight[below], e[below], rtol=1e-2)]
    return fits[0] if len(fits) == 1 else None
