"""Relative loss increases of components, estimated by gradients and measured by exact runs, and the error of
either by reduced precision.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.circuits.attribution import Expansion, gate_scores
from mechdiff.circuits.audits import EXPANSIONS
from mechdiff.core import devices
from mechdiff.core.config import Precision, SweepConfig
from mechdiff.core.numerics import ROUNDING, require_finite
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps import precision
from mechdiff.sweeps.ablation import ablation_sweep


class ExactLosses(NamedTuple):
    """Losses with each component ablated and of the network without intervention, by exact runs; and the
    error of pooled relative loss increases by reduced precision, in points."""

    loss: Float[np.ndarray, "component t image"]
    clean_loss: Float[np.ndarray, "t image"]
    precision_error: Float[np.ndarray, " component"]

    @property
    def increase(self) -> Float[np.ndarray, "component t"]:
        """Relative loss increases at each timestep, %."""
        return stats.percent_increase(self.loss.mean(-1), self.clean_loss.mean(-1))


def score_all(
    denoiser: Examinable,
    eval_set: EvalSet,
    chosen: Sequence[Component],
    points: Sequence[str] = EXPANSIONS,
    *,
    ablation: str = "zero",
    replacements: PyTree = None,
    random_vectors: int = 4,
) -> tuple[dict[str, xr.Dataset], dict[str, Float[np.ndarray, "component t"]]]:
    """Scores by point of expansion, and as relative loss increases: in % of the clean loss at each timestep.

    Args:
      points: `identity`, `ablated`, or `either`, the score of larger size of these two: a component matters
        if its ablation hurts while the others are there, or if it helps where they are ablated.
      ablation, replacements: as in `attribution.gate_scores`.
      random_vectors: their number, see `attribution.Expansion`.
    """
    needed = ["identity"] if set(points) == {"identity"} else ["identity", "ablated"]
    scores = {
        at: gate_scores(
            denoiser,
            eval_set,
            chosen=chosen,
            ablation=ablation,
            replacements=replacements,
            expansion=Expansion(at=at, random_vectors=random_vectors),
        )
        for at in needed
    }
    base = scores["identity"].clean_loss.mean("image").values
    relative = {at: 100 * dataset.score.mean("image").values / base for at, dataset in scores.items()}
    if "either" in points:
        first, last = relative["identity"], relative["ablated"]
        larger = np.abs(first.mean(1)) >= np.abs(last.mean(1))
        relative["either"] = np.where(larger[:, None], first, last)
    return scores, {point: relative[point] for point in points}


def score_error(
    score: Callable[[EvalSet, PyTree], Float[np.ndarray, "component t"]],
    eval_set: EvalSet,
    replacements: PyTree = None,
    *,
    setting: Precision,
) -> float:
    """Largest error of a score, in points, by matrix products of reduced precision: a few images and
    timesteps are scored in reduced and in full precision, under the same random numbers. 0 where the
    precision has no effect.

    Args:
      score: images and replacements at their timesteps -> relative loss increases, in %.
    """
    if not devices.acts(setting):
        return 0.0
    few_images, their_replacements = _part_of(eval_set, replacements)
    with devices.multiplying(setting):
        reduced = score(few_images, their_replacements)
    with jax.default_matmul_precision("float32"):
        return float(np.abs(reduced - score(few_images, their_replacements)).max())


def _part_of(eval_set: EvalSet, replacements: PyTree) -> tuple[EvalSet, PyTree]:
    """The first images at some of the timesteps, and the replacements there; of a nested set only the first
    timestep."""
    checked = precision.subset(len(eval_set.timesteps), eval_set.count)
    t_indices = [0] if eval_set.images.ndim == 5 else list(checked.t_indices)
    images = eval_set.at(0)[0][: checked.images]
    condition = conditions.at(eval_set.condition_at(0), slice(checked.images))
    subset = EvalSet(images, eval_set.timesteps[t_indices], eval_set.key, condition)
    return subset, jax.tree.map(lambda values: values[np.array(t_indices)], replacements)


def exact_losses(
    denoiser: Examinable,
    eval_set: EvalSet,
    folder: Path,
    chosen: Sequence[Component],
    ablation: str = "zero",
    replacements: PyTree = None,
    setting: Precision = "float32",
) -> ExactLosses:
    """Losses of every image with each component ablated, by exact runs; those without intervention where no
    prediction changed by more than rounding.

    Args:
      setting: precision of matrix products.
    """
    config = SweepConfig(ablations=(ablation,), image_block=eval_set.count, precision=setting)
    replacements = None if ablation == "zero" else {ablation: replacements}
    sweep = ablation_sweep(
        denoiser,
        eval_set,
        folder,
        config=config,
        replacements=replacements,
        chosen=chosen,
    ).isel(ablation=0)
    error = sweep["precision_error"].values if "precision_error" in sweep else np.zeros(len(chosen))
    loss, clean = (sweep[name].values.astype(np.float64) for name in ("loss", "clean_loss"))
    require_finite(loss, denoiser.name, f"components under {ablation} ablation")
    idle = sweep["change"].max(("t", "image")).values <= ROUNDING
    return ExactLosses(np.where(idle[:, None, None], clean, loss), clean, error)
