"""Noise levels and objective of lucidrains' `GaussianDiffusion`: from buffers, a config, or statements."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import CheckpointError, ConfigError, shorten
from mechdiff.models.pretrained.diffusers.schedulers import from_betas
from mechdiff.models.pretrained.files.options import Options
from mechdiff.models.pretrained.imported import Stated

WHAT = "lucidrains"
OBJECTIVES = {"pred_noise": "epsilon", "pred_v": "v_prediction", "pred_x0": "sample"}
SCHEDULES = {  # by name: arguments of its function (`schedule_fn_kwargs`) and their usual values
    "linear": {},
    "cosine": {"s": 0.008},
    "sigmoid": {"start": -3.0, "end": 3.0, "tau": 1.0, "clamp_min": 1e-5},  # the last has no effect there
}
HALVES = {"bfloat16": jnp.bfloat16, "float16": np.float16}  # the coarser first


def noise_levels(get: Options, buffers: Mapping, stated: Stated) -> tuple[DiffusionConfig, str]:
    """Noise levels from the buffer `betas`, or by name from the config or the statements; all must agree.

    Betas that were rounded to half precision are replaced by those of the name, where they agree with it.

    Raises:
      ConfigError: noise levels that are given nowhere, or in two ways that differ; betas rounded to 0 or 1.
      CheckpointError: betas that are no list.
    """
    names = {get["beta_schedule"], stated.noise_schedule} - {None}
    steps = {get["timesteps"], stated.noise_steps} - {None}
    arguments = get["schedule_fn_kwargs"]
    if len(names) > 1 or len(steps) > 1:
        raise ConfigError(
            f"{WHAT}: what is stated of the noise levels contradicts the config: {names | steps}"
        )
    if "betas" in buffers:
        betas = np.asarray(buffers["betas"], np.float64)
        if betas.ndim != 1:
            raise CheckpointError(f"{WHAT}: the file's betas have the shape {betas.shape}, not one axis")
        if steps - {len(betas)}:
            raise ConfigError(f"{WHAT} option timesteps={steps.pop()}, but the file has {len(betas)} betas")
        return _of_file(betas, names.pop() if names else None, arguments)
    if not names or not steps:
        raise ConfigError(
            f"{WHAT}: the file has no betas (a bare Unet): state beta_schedule ({', '.join(SCHEDULES)}) and "
            "timesteps in the config"
        )
    name = names.pop()
    if name not in SCHEDULES:
        raise ConfigError(
            f"{WHAT} noise schedule {shorten(name)} is not known; known: {', '.join(SCHEDULES)}"
        )
    return from_betas(betas_of(name, steps.pop(), arguments)), ""


def _of_file(
    betas: np.ndarray, name: str | None, arguments: Mapping[str, float]
) -> tuple[DiffusionConfig, str]:
    """Noise levels by the file's betas and their name, if they have one, and a note."""
    rounded = rounded_to(betas)
    if name is not None:
        exact = betas_of(name, len(betas), arguments)
        error = np.spacing(betas.astype(HALVES[rounded])).astype(np.float64) if rounded else 0.0
        if (np.abs(betas - exact) > np.maximum(1e-4 * exact + 1e-9, error)).any():
            raise ConfigError(f"{WHAT} option beta_schedule={name}, but the file's betas are others")
        if rounded:
            note = f"noise levels are {name}'s, of which the file's betas are roundings to {rounded}"
            return from_betas(exact), note
    if rounded and (betas.min() <= 0 or betas.max() >= 1):
        raise ConfigError(
            f"{WHAT}: the file's betas are rounded to {rounded}, some to 0 or 1: write beta_schedule "
            f"({', '.join(SCHEDULES)}) into the config"
        )
    note = "noise levels are those of the file's betas"
    if rounded:
        note += f", rounded to {rounded}; those of a beta_schedule in the config would be exact"
    return from_betas(betas), note


def rounded_to(betas: np.ndarray) -> str:
    """The type of half precision that betas were stored in; empty if none holds them.

    Example:
      >>> rounded_to(np.array([0.0001, 0.02])), rounded_to(np.array([0.0001, 0.02]).astype(np.float16))
      ('', 'float16')
    """
    held = (
        name for name, dtype in HALVES.items() if (betas.astype(dtype).astype(betas.dtype) == betas).all()
    )
    return next(held, "")


def betas_of(name: str, steps: int, arguments: Mapping[str, float] | None = None) -> np.ndarray:
    """The package's schedules: linear scaled to `steps`, cosine, and sigmoid.

    Args:
      arguments: of the schedule's function, where they are not the usual ones (`SCHEDULES`).

    Raises:
      ConfigError: an argument that the schedule's function does not take, or that makes no noise levels.
    """
    arguments = arguments or {}
    if strange := [argument for argument in arguments if argument not in SCHEDULES[name]]:
        raise ConfigError(
            f"{WHAT} option schedule_fn_kwargs has {shorten(strange[0])}, but the schedule {name} takes "
            f"{', '.join(SCHEDULES[name]) or 'no arguments'}"
        )
    with np.errstate(all="ignore"):
        betas = _betas(name, steps, **SCHEDULES[name] | arguments)
    if not (betas.min() > 0 and betas.max() < 1):  # NaN too
        raise ConfigError(f"{WHAT} option schedule_fn_kwargs={shorten(arguments)} makes no betas in (0, 1)")
    return betas


def _betas(name: str, steps: int, s=0.0, start=0.0, end=0.0, tau=1.0, clamp_min=0.0) -> np.ndarray:
    if name == "linear":
        return np.linspace(0.1 / steps, 20 / steps, steps)
    fraction = np.arange(steps + 1) / steps
    if name == "cosine":
        bar = np.cos((fraction + s) / (1 + s) * np.pi / 2) ** 2
    else:
        low, high = expit(np.divide([start, end], tau))
        bar = (high - expit((fraction * (end - start) + start) / tau)) / (high - low)
    return np.clip(1 - bar[1:] / bar[:-1], 0, 0.999)


def objective(get: Options, buffers: Mapping, stated: Stated) -> tuple[str, str]:
    """A note, and the network's output: by the weights of the loss, else by the config or the statements.

    Raises:
      ConfigError: an objective that is given nowhere, or in two ways that differ.
    """
    predictions = {OBJECTIVES.get(get["objective"]), stated.prediction, by_loss_weight(buffers)} - {None}
    if len(predictions) > 1:
        raise ConfigError(
            f"{WHAT}: objective is told as {' and '.join(sorted(predictions))}; they contradict"
        )
    if not predictions:
        raise ConfigError(
            f"{WHAT} option objective is absent, and no tensor tells it: write {' or '.join(OBJECTIVES)}"
        )
    by_file = get["objective"] is None and stated.prediction is None
    prediction = predictions.pop()
    return (f"the weights of its loss are those of {prediction}" if by_file else ""), prediction


def trained_with_variances(get: Options, buffers: Mapping, stated: Stated) -> tuple[str, str]:
    """As `objective`, of a network with learned variances. The package's class for these regresses noise
    whatever its objective, of which its buffer `loss_weight` and its config still tell.

    Raises:
      ConfigError: a bare network whose objective is given nowhere; an objective other than noise that is
        not stated by `prediction`; or one that contradicts what is stated.
    """
    named = OBJECTIVES.get(get["objective"])
    if named in (None, "epsilon"):
        if stated.prediction is None and "betas" in buffers:
            return "it predicts noise, as all networks with learned variances of this package do", "epsilon"
        return objective(get, {}, stated)
    if stated.prediction in ("epsilon", named):
        return "", stated.prediction
    raise ConfigError(
        f"{WHAT} option objective={get['objective']} of a network with learned variances: the package's "
        "LearnedGaussianDiffusion trains it to predict noise all the same; state --prediction=epsilon if "
        f"that trained it, --prediction={named} if another program did"
    )


def by_loss_weight(buffers: Mapping) -> str | None:
    """Which output the buffer `loss_weight` belongs to: 1, snr or snr / (snr + 1), where snr is below 1, as
    the weights may be cut above."""
    if not {"loss_weight", "alphas_cumprod"} <= set(buffers):
        return None
    weight, bar = (np.asarray(buffers[name], np.float64) for name in ("loss_weight", "alphas_cumprod"))
    if weight.shape != bar.shape:
        return None
    snr = bar / np.maximum(1 - bar, 1e-12)
    expected = {"epsilon": np.ones_like(snr), "sample": snr, "v_prediction": snr / (snr + 1)}
    below = (snr < 1) & (snr > 1e-3)
    fits = [k for k, e in expected.items() if below.any() and np.allclose(weight[below], e[below], rtol=1e-2)]
    return fits[0] if len(fits) == 1 else None
