"""What `accelerator` measures of a device itself: one process, one task, one JSON line.

Tasks: `product` (ceiling), `answers` (correctness against a CPU's stored losses), `attention` (its forms),
`profile` (of a sweep).
"""

import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _harness, mechdiff_arm
from mechdiff.core import devices
from mechdiff.core.config import ExperimentConfig, SweepConfig, from_dict
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models.attention import attend
from mechdiff.models.load import load_denoiser
from mechdiff.models.stages import stages
from mechdiff.sweeps.ablation import ablation_sweep

STORED = Path(__file__).with_name("answers.json")
MODEL = Path(__file__).parents[2] / "checkpoints" / "cpu16-synthetic-seed0"
IMAGES, TIMESTEPS = 4, 2
PRODUCTS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": None}


def product(setting: str, config: ExperimentConfig, side: int) -> dict:
    """GFLOP/s of square matrices, large enough to fill a card."""
    dtype = jnp.bfloat16 if setting == "bfloat16" else jnp.float32
    a = jnp.ones((side, side), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=PRODUCTS[setting]))
    taken = _harness.seconds(lambda: multiply(a).block_until_ready())
    return {"gflops": 2 * side**3 / taken / 1e9, "side": side}


def increases(setting: str) -> tuple[np.ndarray, float]:
    """Relative loss increases `(components, timesteps)` in %, and the error that the sweep itself found."""
    denoiser = load_denoiser(MODEL)[0]
    shape = (IMAGES, *denoiser.image_shape)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    eval_set = EvalSet(images, timesteps_by_log_snr(denoiser.schedule, TIMESTEPS), jax.random.key(0))
    settings = SweepConfig(ablations=("zero",), image_block=IMAGES, precision=setting)
    with tempfile.TemporaryDirectory() as folder:
        swept = ablation_sweep(denoiser, eval_set, Path(folder), config=settings)
    means = swept.astype(np.float64).mean("image")
    cells = 100 * (means["loss"].isel(ablation=0) / means["clean_loss"] - 1)
    error = float(swept["precision_error"].max()) if "precision_error" in swept else 0.0
    return cells.transpose("component", "t").values, error


def answers(setting: str, config: ExperimentConfig, side: int) -> dict:
    """Largest difference from a CPU's stored relative loss increases, in points, and the largest of these."""
    cells, own_error = increases(setting)
    stored = np.array(json.loads(STORED.read_text())["increases"])
    difference = float(np.abs(cells - stored).max())
    return {"points": difference, "of": float(np.abs(stored).max()), "own_error": own_error}


def attention(setting: str, config: ExperimentConfig, side: int) -> dict:
    """Attention of the network's widest map that has it, of `side` images: `mechdiff`, JAX's own, or cuDNN's.

    Milliseconds without and with gradient, and the largest difference from patterns in float64.
    """
    form, dtype = setting.split()
    stage = max((s for s in stages(config.unet) if s.op == "attention"), key=lambda s: s.resolution)
    shape = (side, stage.heads, stage.resolution**2, stage.width // stage.heads)
    q, k, v = (np.random.default_rng(seed).normal(size=shape) for seed in range(3))
    q = q * shape[-1] ** -0.5
    run = attend
    if form != "mechdiff":
        run = functools.partial(_library_attention, "xla" if form == "jax" else form)
    placed = [jnp.asarray(a, dtype) for a in (q, k, v)]
    with jax.default_matmul_precision("float32"):
        forward = jax.jit(run)
        gradient = jax.jit(jax.grad(lambda *a: run(*a).astype(jnp.float32).sum(), (0, 1, 2)))
        output = np.asarray(forward(*placed)[:1], np.float64)
        taken = [
            1e3 * _harness.seconds(lambda call=call: jax.block_until_ready(call(*placed)))
            for call in (forward, gradient)
        ]
    weights = np.exp(q[:1] @ k[:1].swapaxes(-1, -2))
    exact = weights / weights.sum(-1, keepdims=True) @ v[:1]
    difference = float(np.abs(output - exact).max())
    return {"milliseconds": taken[0], "gradient_milliseconds": taken[1], "difference": difference}


def _library_attention(form: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`jax.nn.dot_product_attention`, which takes heads behind tokens; `q` is scaled already."""
    heads_last = (a.swapaxes(1, 2) for a in (q, k, v))
    implementation = "xla" if form == "jax" else form
    mixed = jax.nn.dot_product_attention(*heads_last, scale=1.0, implementation=implementation)
    return mixed.swapaxes(1, 2)


def profile(setting: str, config: ExperimentConfig, side: int) -> dict:
    """A trace of one sweep that is compiled already; open the folder with xprof or TensorBoard."""
    sweep = dataclasses.replace(config.sweep, precision=setting)
    once, _ = mechdiff_arm.forward_sweep(dataclasses.replace(config, sweep=sweep), side)
    once()
    folder = Path(config.name)
    with jax.profiler.trace(str(folder)):
        once()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"folder": str(folder), "bytes": size}


def main(task: str, setting: str, side: str, config: str) -> None:
    tasks = {"product": product, "answers": answers, "attention": attention, "profile": profile}
    result = tasks[task](setting, from_dict(json.loads(config)), int(side))  # may still choose its devices
    facts = {"device": jax.devices()[0].device_kind, "platform": jax.default_backend()}
    facts |= {"devices": jax.device_count(), "jax": jax.__version__, "acts": devices.acts(setting)}
    print(json.dumps(result | facts))


if __name__ == "__main__":
    if sys.argv[1:] == ["store"]:  # on a CPU, when numbers changed on purpose (`NUMERICS_VERSION`)
        about = {"model": MODEL.name, "images": IMAGES, "timesteps": TIMESTEPS}
        increases_in_float32 = increases("float32")[0].round(6).tolist()
        STORED.write_text(json.dumps(about | {"increases": increases_in_float32}) + "\n")
    else:
        main(*sys.argv[1:])
