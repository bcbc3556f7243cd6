"""Screen all components by their scores, verify the best exactly, and estimate what was missed.

The shortlist holds the components with the largest |score|; a random audit of the rest, verified too, tells
how often the screen misses. While the upper end of that rate exceeds `miss_bound`, the shortlist doubles.
What was verified once is never computed again. When audits stop is the business of `audits`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff.circuits.attribution import Expansion, gate_scores
from mechdiff.circuits.audits import EXPANSIONS, ScreenConfig, audit_until
from mechdiff.circuits.score_agreement import ScoreAgreement, score_agreement
from mechdiff.core import devices
from mechdiff.core.config import Precision, SweepConfig
from mechdiff.core.text_table import text_table
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.sweeps import precision
from mechdiff.sweeps.ablation import ablation_sweep


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
      miss_interval: of the share of all that are not on the shortlist; over all the audits that the rule may
        make, and so wherever it stops, right with at least 95 %.
      fidelity: over the verified components only: those with large scores, and the last audits.
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
    precision_error: Float[np.ndarray, " component"]
    score_error: float


class ExactIncrease(NamedTuple):
    """Relative loss increases (%) by exact runs, and their error by reduced precision, in points."""

    increase: Float[np.ndarray, "component t"]
    precision_error: Float[np.ndarray, " component"]


def score_all(
    denoiser: Examinable,
    eval_set: EvalSet,
    chosen: Sequence[Component],
    points: Sequence[str] = EXPANSIONS,
    *,
    ablation: str = "zero",
    replacements: PyTree = None,
    probes: int = 4,
) -> tuple[dict[str, xr.Dataset], dict[str, Float[np.ndarray, "component t"]]]:
    """Scores by point of expansion, and as relative loss increases: in % of the clean loss at each timestep.

    Args:
      points: `identity`, `ablated`, or `either`, the score of larger size of these two: a component matters
        if its ablation hurts while the others are there, or if it helps where they are ablated.
      ablation, replacements: as in `attribution.gate_scores`.
      probes: random vectors, see `attribution.Expansion`.
    """
    needed = ["identity"] if set(points) == {"identity"} else ["identity", "ablated"]
    scores = {
        at: gate_scores(
            denoiser,
            eval_set,
            chosen=chosen,
            ablation=ablation,
            replacements=replacements,
            expansion=Expansion(at=at, probes=probes),
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
      folder: exact runs are kept here, see `sweeps.ablation_sweep`.
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
    kwargs = {"ablation": ablation, "replacements": replacements}

    def score_of(
        eval_set: EvalSet, replacements: PyTree
    ) -> tuple[dict[str, xr.Dataset], Float[np.ndarray, "component t"]]:
        options = {"ablation": ablation, "replacements": replacements, "probes": config.probes}
        scores, relative = score_all(denoiser, eval_set, chosen, (config.point,), **options)
        return scores, relative[config.point]

    with devices.multiplying(config.precision):
        scores, scored = score_of(eval_set, replacements)
    exact = np.full(scored.shape, np.nan)  # relative loss increase at each timestep, %
    error = np.full(len(chosen), np.nan)
    run = functools.partial(exact_increase, denoiser, eval_set, folder, setting=config.precision, **kwargs)

    def verify(which: Int[np.ndarray, " n"]) -> np.ndarray:
        new = which[np.isnan(exact[which, 0])]
        if len(new):
            exact[new], error[new] = run([chosen[i] for i in new])
        return np.abs(exact[which].mean(1))

    score = scored.mean(1)
    order = np.argsort(-np.abs(score), kind="stable")
    audit = audit_until(
        order, verify, config, np.random.default_rng(config.seed), error=lambda which: error[which]
    )
    return VerifiedScreen(
        scores=scores,
        score=score,
        effect=exact.mean(1),
        shortlist=tuple(chosen[i].name for i in order[: audit.size]),
        audited=tuple(chosen[i].name for i in audit.audited),
        k=config.k,
        looks=audit.looks,
        miss_rate=audit.missed / max(len(audit.audited), 1),
        miss_interval=audit.interval,
        fidelity=score_agreement(scored, exact, chosen, eval_set.timesteps, config.k),
        precision_error=error,
        score_error=score_error(
            lambda *part: score_of(*part)[1], eval_set, replacements, setting=config.precision
        ),
    )


def score_error(
    score: Callable[[EvalSet, PyTree], Float[np.ndarray, "component t"]],
    eval_set: EvalSet,
    replacements: PyTree = None,
    *,
    setting: Precision,
) -> float:
    """Largest error of a score, in points, of products in reduced precision: a few images and timesteps are
    scored both ways, under the same random numbers. 0 where the precision changes nothing here.

    Args:
      score: of a set and replacements at its timesteps: relative loss increases, in %.
    """
    if not devices.acts(setting):
        return 0.0
    few_images, their_replacements = _part_of(eval_set, replacements)
    with devices.multiplying(setting):
        reduced = score(few_images, their_replacements)
    with jax.default_matmul_precision("float32"):
        return float(np.abs(reduced - score(few_images, their_replacements)).max())


def _part_of(eval_set: EvalSet, replacements: PyTree) -> tuple[EvalSet, PyTree]:
    """The first images at some of the timesteps (where these have images of their own: at the first), with
    the replacements there."""
    checked = precision.subset(len(eval_set.timesteps), eval_set.count)
    places = [0] if eval_set.images.ndim == 5 else list(checked.t_indices)
    images = eval_set.at(0)[0][: checked.images]
    condition = jax.tree.map(lambda leaf: leaf[: checked.images], eval_set.condition_at(0))
    part = EvalSet(images, eval_set.timesteps[places], eval_set.key, condition)
    return part, jax.tree.map(lambda values: values[np.array(places)], replacements)


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

    Agreement within a selection by score would be biased. Of `config` it takes `k`, `probes` and `precision`.
    """
    config = config or ScreenConfig()
    chosen = chosen_components(denoiser, chosen)
    kwargs = {"ablation": ablation, "replacements": replacements}
    with devices.multiplying(config.precision):
        relative = score_all(denoiser, eval_set, chosen, probes=config.probes, **kwargs)[1]
    exact = exact_increase(denoiser, eval_set, folder, chosen, setting=config.precision, **kwargs).increase
    return {
        point: score_agreement(scores, exact, chosen, eval_set.timesteps, config.k)
        for point, scores in relative.items()
    }


def top(screen: VerifiedScreen, names: Sequence[str], count: int = 10) -> list[dict[str, object]]:
    """The verified components of the largest effects, of either sign: component, score and exact effect, %.

    Args:
      names: of all components, in their order.
    """
    sizes = np.where(np.isnan(screen.effect), -1.0, np.abs(screen.effect))
    order = np.argsort(-sizes, kind="stable")[:count]
    return [
        {"component": names[i], "score, %": float(screen.score[i]), "exact, %": float(screen.effect[i])}
        for i in order
        if sizes[i] >= 0
    ]


def lines(screen: VerifiedScreen, names: Sequence[str]) -> list[str]:
    """A screen as a table: what was verified, by size, and how far the scores can be trusted."""
    place = {name: i for i, name in enumerate(names)}
    done = [place[name] for name in (*screen.shortlist, *screen.audited)]
    done.sort(key=lambda i: -abs(screen.effect[i]))
    error = float(np.max(screen.precision_error[done], initial=0.0))
    precise = [f"precision {error:.2g} points, of scores {screen.score_error:.2g}"] if error else []
    groups = {"all": screen.fidelity.overall, **screen.fidelity.by_part}
    groups |= {f"t = {t}": agreement for t, agreement in screen.fidelity.by_t.items()}
    low, high = screen.miss_interval
    scores = [(names[i], f"{screen.score[i]:.3f} %", f"{screen.effect[i]:.3f} %") for i in done]
    agreements = [
        (
            name,
            f"{group.n}",
            f"{group.spearman:.2f}",
            *(f"{x:.0%}" for x in (group.sign, group.recall, group.listed)),
        )
        for name, group in groups.items()
    ]
    return [
        *text_table(("component", "score", "exact"), scores),
        *text_table(("of those verified", "n", "Spearman", "signs", "recall", "listed"), agreements),
        f"{len(done):,} of {len(names):,} verified; of those not on the shortlist {screen.miss_rate:.1%} "
        f"[{low:.1%}, {high:.1%}] are missed ({len(screen.audited)} audited, audit {screen.looks})",
        *precise,
    ]


def exact_increase(
    denoiser: Examinable,
    eval_set: EvalSet,
    folder: Path,
    chosen: Sequence[Component],
    ablation: str = "zero",
    replacements: PyTree = None,
    setting: Precision = "float32",
) -> ExactIncrease:
    """Relative loss increase (%) of ablating each component, at each timestep, by exact runs.

    Args:
      setting: precision of products.
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
    increase = 100 * (sweep.loss.mean("image") / sweep.clean_loss.mean("image") - 1).values
    error = sweep["precision_error"].values if "precision_error" in sweep else np.zeros(len(chosen))
    return ExactIncrease(increase, error)
