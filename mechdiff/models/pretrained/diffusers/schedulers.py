"""Scheduler configs of diffusers: the noise levels, what the network predicts, and how images are clipped."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mechdiff.core.config import MAX_STEPS, DiffusionConfig
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.diffusion.schedules import betas_of
from mechdiff.models.pretrained import foreign
from mechdiff.models.pretrained.diffusers import betas as betas_by_name
from mechdiff.models.pretrained.diffusers import clipping
from mechdiff.models.pretrained.files import states
from mechdiff.models.pretrained.files.options import (
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
from mechdiff.models.pretrained.imported import Stated

WHAT = "scheduler"
OURS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
WITHOUT_ENDS = ("squaredcos_cap_v2", *betas_by_name.BY_SIGNAL)  # schedules that beta_start has no effect on
USUAL = (
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "DEISMultistep", "RePaint",
    "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "UniPCMultistep", "SASolver",
    "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete",
)  # fmt: skip
LATENT_DEFAULTS = {"beta_start": 0.00085, "beta_end": 0.012}  # Rombach et al. 2022
DEFAULTS_OF = {  # class -> defaults that differ, of diffusers 0.42
    **{f"{name}Scheduler": {} for name in USUAL},
    **{
        f"{name}Scheduler": LATENT_DEFAULTS
        for name in ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE")
    },
    **{f"{name}Scheduler": LATENT_DEFAULTS | {"beta_schedule": "scaled_linear"} for name in ("LCM", "TCD")},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
FIXED_VARIANCES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
TABLE = {
    "_class_name": Option("DDPMScheduler", choice("DDPMScheduler")),
    "num_train_timesteps": Option(1000, integer(2, MAX_STEPS)),
    "beta_start": Option(1e-4, number(0.0)),
    "beta_end": Option(0.02, number(0.0)),
    "beta_schedule": Option("linear", choice(*OURS, *betas_by_name.NAMES), (*OURS, *betas_by_name.NAMES)),
    "trained_betas": Option(None, optional(listed(number(0.0)))),
    "prediction_type": Option("epsilon", choice(*PREDICTIONS), PREDICTIONS),
    "predict_epsilon": Option(True, boolean()),  # before diffusers 0.10
    "rescale_betas_zero_snr": Option(False, boolean()),
    "variance_type": Option("fixed_small", choice(None), (*FIXED_VARIANCES, "learned", "learned_range")),
    **clipping.TABLE,
    "use_flow_sigmas": Option(None, anything(), (None, False)),
    "timestep_type": Option("discrete", anything(), ("discrete",)),
    "sigma_min": Option(None, anything(), (None,)),
    "sigma_max": Option(None, anything(), (None,)),
}
# How images are drawn, not what the network is: `sampler` has its own ways.
SAMPLING = (
    "algorithm_type", "corrector_order", "disable_corrector", "eta",
    "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped",
    "lower_order_final", "noise_sampler_seed", "original_inference_steps", "predict_x0", "predictor_order",
    "set_alpha_to_one", "shift_terminal", "skip_prk_steps", "solver_order", "solver_p",
    "solver_type", "steps_offset", "tau_func", "tensor_format", "time_shift_type",
    "timestep_scaling", "timestep_spacing", "timestep_values", "use_beta_sigmas", "use_dynamic_shifting",
    "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas",
)  # fmt: skip
# Values that diffusers writes whether or not they were chosen; no note speaks of them.
USUAL_SAMPLING = {"timestep_spacing": "leading"}
ASKED = {  # what we call the options that decide what a network's output means
    "beta_schedule": "noise_schedule",
    "num_train_timesteps": "noise_steps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "prediction_type": "prediction",
}
MIN_ALPHA_BAR = 2.0**-24  # abar of the last level where it is rescaled to none, as in diffusers' `BOUNDED`
BOUNDED = ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep")  # others keep 0
STEP_DOWN = 0.25  # at most this share of the abar of the level before, which may be fainter still


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """A scheduler's statements on its network.

    Attributes:
      learned_variances: whether the network also outputs variances.
      clip: range that predicted images are clipped to; 0: none.
      asks: see `Imported`.
    """

    prediction: str
    diffusion: DiffusionConfig
    clip: float
    learned_variances: bool
    notes: tuple[str, ...]
    assumed: tuple[str, ...]
    asks: str


def read(config: Mapping[str, Any], stated: Stated = Stated()) -> Scheduler:
    """The noise schedule of a scheduler's options and of the user's statements.

    Raises:
      ConfigError: unknown options, values that are not supported, or a statement that contradicts them.
    """
    merged, assumed = _with_statements(config, stated)
    kind = merged.get("_class_name", "DDPMScheduler")
    if not isinstance(kind, str) or kind not in DEFAULTS_OF:
        raise ConfigError(_no_betas(kind))
    table = TABLE | {
        name: dataclasses.replace(TABLE[name], default=value) for name, value in DEFAULTS_OF[kind].items()
    }
    get = read_options(merged, table, what=WHAT, ignored=SAMPLING)
    clip, thresholded = clipping.clip_of(get, kind)
    notes = [_assumptions(assumed)] if assumed else []
    notes += [thresholded] if thresholded else []
    drawn = sorted(
        name for name in get.passed_over if config.get(name) not in (None, False, USUAL_SAMPLING.get(name))
    )
    drawn += ["thresholding"] if get["thresholding"] and not thresholded else []
    if drawn:
        notes.append(f"options of sampling without bearing here: {', '.join(drawn)}")
    diffusion = _diffusion(get)
    if get["rescale_betas_zero_snr"]:
        notes.append(_of_last_level(kind, float(np.prod(1 - np.asarray(diffusion.betas)))))
    if config and _defaulted(get):
        notes.append(f"ASSUMED, by the scheduler's defaults: {', '.join(_defaulted(get))}")
    told = "prediction_type" in get.stated
    if told and "predict_epsilon" in get.stated:
        flag, kind_told = get["predict_epsilon"], get["prediction_type"]
        if kind_told != ("epsilon" if flag else "sample"):
            raise ConfigError(
                f"{WHAT} option predict_epsilon={flag} and prediction_type={kind_told!r} (of the file, or "
                "stated) contradict each other; leave out the one that is wrong"
            )
    sample = not get["predict_epsilon"] and not told
    return Scheduler(
        prediction="sample" if sample else get["prediction_type"],
        diffusion=diffusion,
        clip=clip,
        learned_variances=get["variance_type"] in ("learned", "learned_range"),
        notes=tuple(notes),
        assumed=assumed,
        asks=states.levels_asked("no scheduler_config.json lies there or beside", assumed),
    )


def write(diffusion: DiffusionConfig, prediction: str, clip: float = 1.0) -> dict[str, Any]:
    """The `DDPMScheduler` of these noise levels."""
    theirs = {ours: name for name, ours in OURS.items()}
    options = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": theirs.get(diffusion.schedule, "linear"),
        "prediction_type": prediction,
        "variance_type": "fixed_small",
        "clip_sample": clip > 0,
    }
    if diffusion.betas:
        options["trained_betas"] = list(diffusion.betas)
    if clip not in (0.0, 1.0):
        options["clip_sample_range"] = clip
    return options


def _with_statements(config: Mapping[str, Any], stated: Stated) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options and statements together, and what neither of them gives where there are no options at all."""
    merged = dict(config)
    theirs = {ours: name for name, ours in OURS.items()}
    for name, ours in ASKED.items():
        value = getattr(stated, ours)
        value = theirs.get(value, value) if name == "beta_schedule" else value
        if value is None:
            continue
        if name in config and config[name] != value:
            raise ConfigError(
                f"--{ours}={shorten(value)} contradicts {WHAT} option {name}={shorten(config[name])}"
            )
        merged[name] = value
    missing = (
        {} if config else {ours: TABLE[name].default for name, ours in ASKED.items() if name not in merged}
    )
    if merged.get("beta_schedule") == theirs["cosine"]:
        _refuse_betas(stated)
        missing = {name: value for name, value in missing.items() if not name.startswith("beta")}
    return merged, states.summary(missing)


def _refuse_betas(stated: Stated) -> None:
    for name in ("beta_start", "beta_end"):
        if getattr(stated, name) is not None:
            raise ConfigError(f"--{name} has no effect on a cosine schedule; leave it out")


def _assumptions(assumed: tuple[str, ...]) -> str:
    return (
        f"no scheduler_config.json: ASSUMED, by diffusers' defaults: {', '.join(assumed)}; put the file "
        "beside the network or state them: --noise_schedule, --noise_steps, --beta_start, --beta_end, "
        "--prediction"
    )


def _defaulted(get: Options) -> tuple[str, ...]:
    """`option=value` of what decides numbers and is not in the file; diffusers itself writes all of it."""
    settled = set(get.stated) | ({"prediction_type"} if "predict_epsilon" in get.stated else set())
    if get["trained_betas"] is not None:
        settled |= {"num_train_timesteps", "beta_schedule"}
    if get["trained_betas"] is not None or get["beta_schedule"] in WITHOUT_ENDS:
        settled |= {"beta_start", "beta_end"}
    return states.summary({name: get[name] for name in ASKED if name not in settled})


def _no_betas(kind: Any) -> str:
    if isinstance(kind, str) and ("Flow" in kind or "RF" in kind):
        return f"{WHAT} {shorten(kind)} is of flow matching, which is not read; {foreign.WAY_OUT}"
    if isinstance(kind, str) and (
        "EDM" in kind or "Karras" in kind or "Consistency" in kind or "CM" in kind or "Sde" in kind
    ):
        return f"{WHAT} {shorten(kind)} has continuous noise levels, which are not read; {foreign.WAY_OUT}"
    return unknown(f"class of {WHAT} (of those with betas)", str(kind), DEFAULTS_OF)


def _of_last_level(kind: str, kept: float) -> str:
    """The note on a last level that was rescaled to zero signal and keeps this share of it."""
    bounded = kind.removesuffix("Scheduler") in BOUNDED
    if bounded and np.isclose(kept, MIN_ALPHA_BAR, rtol=1e-6):
        why = "2^-24: diffusers' own bound"
    elif bounded:
        why = f"{kept:.3g}, a quarter of the level before; diffusers keeps 2^-24, more than there"
    else:
        why = f"{kept:.3g} (not 0, by which samplers would divide)"
    return f"the last noise level, rescaled to zero signal, keeps a share of {why}"


def _diffusion(get: Options) -> DiffusionConfig:
    """Named where we have the name, else by all betas."""
    steps, start, end = get["num_train_timesteps"], get["beta_start"], get["beta_end"]
    named = DiffusionConfig(steps=steps)
    if get["beta_schedule"] in OURS and OURS[get["beta_schedule"]] != "cosine":
        named = DiffusionConfig(
            schedule=OURS[get["beta_schedule"]], steps=steps, beta_start=start, beta_end=end
        )
    elif get["beta_schedule"] in OURS:
        named = DiffusionConfig(schedule="cosine", steps=steps)
    betas = get["trained_betas"]
    if betas is not None and "num_train_timesteps" in get.stated and len(betas) != steps:
        raise ConfigError(
            f"{WHAT} option trained_betas has {len(betas)} numbers, num_train_timesteps={steps}"
        )
    if betas is None and get["beta_schedule"] in betas_by_name.NAMES:
        betas = betas_by_name.named(get["beta_schedule"], steps, start, end)
    if betas is None and get["rescale_betas_zero_snr"]:
        betas = betas_of(named)
    if betas is None:
        return named
    if get["rescale_betas_zero_snr"]:
        betas = zero_terminal_snr(betas)
    return from_betas(betas)


def from_betas(betas: Iterable[float]) -> DiffusionConfig:
    """Noise levels by all their betas."""
    betas = tuple(float(beta) for beta in betas)
    return DiffusionConfig(schedule="betas", steps=len(betas), betas=betas)


def zero_terminal_snr(betas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Betas rescaled so that the last level holds no signal but `MIN_ALPHA_BAR` (Lin et al. 2024, alg. 1)."""
    signal = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    bar = signal**2
    bar[-1] = min(MIN_ALPHA_BAR, STEP_DOWN * bar[-2])
    return 1 - bar / np.append(1.0, bar[:-1])
