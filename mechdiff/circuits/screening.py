"""Screen all components by their scores, verify the best exactly, and estimate what was missed.

The shortlist holds the components with the largest |score|; a random audit of the rest, verified too, tells
how often the screen misses. While the upper end of that rate exceeds `miss_bound`, the shortlist doubles.
What was verified once is never computed again. `audits` says when it stops.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff.circuits.audits import ScreenConfig, audit_until
from mechdiff.circuits.score_agreement import ScoreAgreement, score_agreement
from mechdiff.circuits.screen_scores import ExactLosses, exact_losses, score_all, score_error
from mechdiff.core import devices
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable, chosen_components


@dataclasses.dataclass(frozen=True)
class VerifiedScreen:
    """Result of a screen, with its miss rate and the agreement of scores with exact effects.

    Attributes:
      scores: of `attribution.gate_scores`, for all components, by point of expansion.
      score: pooled score as a relative loss increase (%), by which components are ranked, in their order.
      effect: pooled exact relative loss increase (%) of those verified, NaN for the rest.
      shortlist, audited: names.
      k: number of largest effects that the screen should not miss.
      looks: audits that were made.
      miss_rate: share of the last audit with an |effect| above the k-th largest of the shortlist.
      miss_interval: 95 % interval of the miss rate among all that are not on the shortlist, valid wherever
        the rule stops.
      fidelity: over the verified components only: those with large scores, and the last audits.
      loss, clean_loss: of every image, with each component ablated (NaN for those not verified) and without
        intervention, `[component, t, image]` and `[t, image]`.
      precision_error: of `effect`, by reduced precision of products, in points; 0 in full precision, NaN for
        those not verified. What may be a miss within it counts as one.
      score_error: largest error of a score, in points, see `score_error`.
    """

    scores: dict[str, xr.Dataset]
    score: Float[np.ndarray, " component"]
    effect: Float[np.ndarray, " component"]
    shortlist: tuple[str, ...]
    audited: tuple[str, ...]
    k: int
    looks: int
    miss_rate: float
    miss_interval: tuple[float, float]
    fidelity: ScoreAgreement
    loss: Float[np.ndarray, "component t image"]
    clean_loss: Float[np.ndarray, "t image"]
    precision_error: Float[np.ndarray, " component"]
    score_error: float


@dataclasses.dataclass(frozen=True)
class _ExactRuns:
    """Exact runs, made when they are first asked for; the arrays are written to.

    Attributes:
      run: losses of some components, and their errors by reduced precision.
      chosen: all components.
      losses: of all; NaN for components that were not run.
      increase: relative, at each timestep, %; NaN for the same components.
    """

    run: Callable[[Sequence[Component]], ExactLosses]
    chosen: Sequence[Component]
    losses: ExactLosses
    increase: Float[np.ndarray, "component t"]

    @classmethod
    def none_yet(cls, run: Callable, chosen: Sequence[Component], shape: tuple[int, int]) -> "_ExactRuns":
        """Of no component so far; `shape`: timesteps and images."""
        many = len(chosen)
        losses = ExactLosses(np.full((many, *shape), np.nan), np.full(shape, np.nan), np.full(many, np.nan))
        return cls(run, chosen, losses, np.full((many, shape[0]), np.nan))

    def sizes(self, which: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Pooled |relative loss increase| of components by their indices; no component is run twice."""
        new = which[np.isnan(self.increase[which, 0])]
        if len(new):
            ran = self.run([self.chosen[i] for i in new])
            self.increase[new] = ran.increase
            self.losses.loss[new], self.losses.precision_error[new] = ran.loss, ran.precision_error
            self.losses.clean_loss[:] = ran.clean_loss
        return np.abs(self.increase[which].mean(1))


def screen_and_verify(
    denoiser: Examinable,
    eval_set: EvalSet,
    folder: Path,
    *,
    chosen: Sequence[Component] | None = None,
    ablation: str = "zero",
    replacements: PyTree = None,
    config: ScreenConfig | None = None,
) -> VerifiedScreen:
    """Finds the components of the largest pooled |relative loss increase| without running all of them.

    Args:
      eval_set: images in [-1, 1], noise and timesteps, the same for scores and exact runs.
      folder: exact runs are kept here, see `ablation.ablation_sweep`.
      chosen: components to screen, possibly thousands; None: all of the network.
      ablation, replacements: as in `attribution.gate_scores`.
      config: how many are verified, and by which scores; None: `ScreenConfig()`.

    Raises:
      ConfigError: an ablation without its replacements.

    Example (`Model.screen` is the first half of it):
      >>> import tempfile
      >>> import jax
      >>> from mechdiff.models.toy import toy_denoiser
      >>> eval_set = EvalSet(np.zeros((4, 2, 2, 3), np.float32), [30, 90], jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     screen = screen_and_verify(toy_denoiser(), eval_set, Path(folder), config=ScreenConfig(k=1))
      >>> screen.shortlist[0], screen.miss_rate
      ('large.mlp', 0.0)
    """
    config = config or ScreenConfig()
    chosen = chosen_components(denoiser, chosen)

    score_of = functools.partial(_scores, denoiser, chosen, ablation, config)
    with devices.multiplying(config.precision):
        scores, scored = score_of(eval_set, replacements)

    def run(which: Sequence[Component]) -> ExactLosses:
        return exact_losses(denoiser, eval_set, folder, which, ablation, replacements, config.precision)

    exact = _ExactRuns.none_yet(run, chosen, (scored.shape[1], eval_set.count))
    score, rng = scored.mean(1), np.random.default_rng(config.seed)
    order = np.argsort(-np.abs(score), kind="stable")
    audit = audit_until(
        order, exact.sizes, config, rng, error=lambda which: exact.losses.precision_error[which]
    )
    return VerifiedScreen(
        scores=scores,
        score=score,
        effect=exact.increase.mean(1),
        shortlist=tuple(chosen[i].name for i in order[: audit.size]),
        audited=tuple(chosen[i].name for i in audit.audited),
        k=config.k,
        looks=audit.looks,
        miss_rate=audit.missed / max(len(audit.audited), 1),
        miss_interval=audit.interval,
        fidelity=score_agreement(scored, exact.increase, chosen, eval_set.timesteps, config.k),
        **exact.losses._asdict(),
        score_error=score_error(
            lambda subset, values: score_of(subset, values)[1],
            eval_set,
            replacements,
            setting=config.precision,
        ),
    )


def _scores(
    denoiser: Examinable,
    chosen: Sequence[Component],
    ablation: str,
    config: ScreenConfig,
    eval_set: EvalSet,
    replacements: PyTree,
) -> tuple[dict[str, xr.Dataset], Float[np.ndarray, "component t"]]:
    """Scores at the point that the ranking is by, and the relative loss increases (%) that they predict."""
    scores, relative = score_all(
        denoiser,
        eval_set,
        chosen,
        (config.point,),
        ablation=ablation,
        replacements=replacements,
        random_vectors=config.random_vectors,
    )
    return scores, relative[config.point]


def quality(
    denoiser: Examinable,
    eval_set: EvalSet,
    folder: Path,
    *,
    chosen: Sequence[Component] | None = None,
    ablation: str = "zero",
    replacements: PyTree = None,
    config: ScreenConfig | None = None,
) -> dict[str, ScoreAgreement]:
    """How well each point of expansion ranks the components, all of which are run exactly.

    Agreement within a selection by score would be biased. Of `config` it takes `k`, `random_vectors` and
    `precision`.
    """
    config = config or ScreenConfig()
    chosen = chosen_components(denoiser, chosen)
    with devices.multiplying(config.precision):
        relative = score_all(
            denoiser,
            eval_set,
            chosen,
            ablation=ablation,
            replacements=replacements,
            random_vectors=config.random_vectors,
        )[1]
    exact = exact_losses(
        denoiser,
        eval_set,
        folder,
        chosen,
        ablation=ablation,
        replacements=replacements,
        setting=config.precision,
    ).increase
    return {
        point: score_agreement(scores, exact, chosen, eval_set.timesteps, config.k)
        for point, scores in relative.items()
    }
