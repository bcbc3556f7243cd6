"""Freezes some numbers of a shipped model: `python -m tests.reference.make_frozen_sweep`, after
`NUMERICS_VERSION` was raised, writes them anew. `tests/test_numerics.py` compares."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mechdiff
from mechdiff.circuits.attribution import Expansion
from mechdiff.core.config import SweepConfig
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.data import to_float
from mechdiff.data.synthetic import render_bytes
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.load import load_denoiser
from mechdiff.sweeps.activations import activation_means
from mechdiff.sweeps.execution.drawing import draw_samples

MODEL = Path(__file__).parents[2] / "checkpoints" / "cpu16-synthetic-seed0"
FROZEN = Path(__file__).with_name("frozen_sweep.npz")
TIMESTEPS = (100, 600)


def numbers(faces: np.ndarray) -> dict[str, np.ndarray]:
    """A sweep of every component, scores by gradients, and two samples.

    Args:
      faces: of level 4, as bytes; kept, as to draw them is compiled.
    """
    denoiser = load_denoiser(MODEL)[0]
    images = np.asarray(to_float(jnp.asarray(faces)))
    key = jax.random.key(7)
    means = {"mean": activation_means(denoiser, EvalSet(images[2:], TIMESTEPS, key), block=4)}
    config = SweepConfig(ablations=("mean",), image_block=2)
    with tempfile.TemporaryDirectory() as folder:
        swept = mechdiff.ablation_sweep(
            denoiser, EvalSet(images[:2], TIMESTEPS, key), Path(folder), config=config, replacements=means
        ).load()
    eval_set = EvalSet(images[:2], TIMESTEPS, key)
    scores = mechdiff.gate_scores(denoiser, eval_set, expansion=Expansion(random_vectors=2))
    return {
        "loss": swept["loss"].values,
        "change": swept["change"].values,
        "clean_loss": swept["clean_loss"].values,
        "scores": scores.to_array().values,
        "samples": np.asarray(draw_samples(denoiser, key, 2, steps=4)),
    }


if __name__ == "__main__":
    faces = render_bytes(0, 0, 6, 16, 4)
    np.savez_compressed(FROZEN, version=NUMERICS_VERSION, faces=faces, **numbers(faces))
