"""The claims of arXiv 2506.17237 that can be tested, and their tests on saved results.

The paper's body was not available: statements follow its abstract and reports by others; every estimand
is ours. Rules from findings to verdicts are in `verdicts`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff.analysis import phases
from mechdiff.core.errors import ConfigError, NotTestable
from mechdiff.stats.small_samples import over_seeds
from mechdiff.study.claims import across_seeds, attention, bottlenecks, complexity
from mechdiff.study.claims.verdicts import Claim, Finding, Question, decide
from mechdiff.study.network_results import NetworkResults

PHASE_TIMESTEPS = 24  # timesteps that a test of four phases needs: at least six a phase


def evaluate(networks: Sequence[NetworkResults]) -> list[Claim]:
    """Every claim, tested on networks of one configuration.

    Claims that compare data sets take CelebA as the natural and synthetic faces of complexity 4 as the simple
    one. Faces of lower complexity, and snapshots of a training other than its last, serve the claim about
    complexity alone; networks of control data are reported with it and serve no claim. If components,
    timesteps or lead ablations of the networks differ, two of them are trainings of one seed, or one is a
    copy of another, no claim is testable.
    """
    controls = [network for network in networks if network.data in across_seeds.CONTROLS]
    networks = across_seeds.without_controls(networks)
    final = across_seeds.final_snapshots(networks)
    full = [
        network
        for network in final
        if network.data != "synthetic" or network.complexity == across_seeds.TOP_COMPLEXITY
    ]
    if not across_seeds.comparable(full):
        return _none_testable(_mixed, full)
    if twice := across_seeds.of_one_seed([*final, *across_seeds.final_snapshots(controls)]):
        return _none_testable(functools.partial(_twice, twice), full)
    if copies := across_seeds.copies([*final, *across_seeds.final_snapshots(controls)]):
        return _none_testable(functools.partial(_copied, copies), full)
    with_controls = {
        "complexity": lambda _: complexity.examine(networks, controls),
        "divergence": lambda final: attention.divergence(final, controls),
    }
    questions = [
        dataclasses.replace(question, test=with_controls.get(question.id, question.test))
        for question in QUESTIONS
    ]
    return decide(questions, full)


def _none_testable(
    test: Callable[[Sequence[NetworkResults]], Finding], networks: Sequence[NetworkResults]
) -> list[Claim]:
    return decide([dataclasses.replace(question, test=test) for question in QUESTIONS], networks)


def _twice(names: Sequence[str], _: Sequence[NetworkResults]) -> Finding:
    raise NotTestable(
        f"{' and '.join(names)} are of one seed and one data set as far as is known, and that counts once; "
        "leave all but one out, or train one with another seed"
    )


def _copied(names: Sequence[str], _: Sequence[NetworkResults]) -> Finding:
    raise NotTestable(
        f"{' and '.join(names)} have equal losses, every one, up to rounding: they are one network, which "
        "counts once; leave all but one out"
    )


def _mixed(_: Sequence[NetworkResults]) -> Finding:
    raise NotTestable(
        "the networks differ in their components or timesteps, or some were swept under mean ablation and "
        "others were not; examine those of one configuration in a folder of their own "
        "(--set=study.models=..., --workdir=...)"
    )


def _phases(networks: Sequence[NetworkResults]) -> Finding:
    if not networks:
        raise NotTestable("no networks")
    timesteps = networks[0].sweep.sizes["t"]
    if timesteps < PHASE_TIMESTEPS:
        raise NotTestable(
            f"{timesteps} timesteps were swept; a test of four phases takes at least {PHASE_TIMESTEPS} "
            "(--set=sweep.timesteps=32)"
        )
    try:
        fits = [_fit(network.sweep) for network in networks]
    except ConfigError as reason:  # a network without any effect, or too few images: other claims go on
        raise NotTestable(f"no phases of every network: {reason}") from None
    # Four phases must fit better than any other number of phases, and than any polynomial trend.
    others = np.array([fit.score[3] - np.delete(fit.score, 3).max() for fit in fits])
    trends = np.array([fit.score[3] - fit.drift.max() for fit in fits])
    margins = np.minimum(others, trends)
    best = sorted(fit.k for fit in fits)
    stepped = np.mean([fit.stepped for fit in fits])
    because = (
        f"the best number of phases is {_range(best)} over {len(fits)} networks, 4 in {best.count(4)} of "
        f"them; a piecewise-constant model fits better than a polynomial trend in {stepped:.0%} of "
        f"resamples; four phases against other numbers {_mean_and_ends(others)}, against trends "
        f"{_mean_and_ends(trends)}"
    )
    if all(network.control is not None for network in networks):
        because += _untrained(networks)
    estimate, interval, p = over_seeds(margins)
    return Finding(estimate, interval, p, len(fits), because)


def _untrained(networks: Sequence[NetworkResults]) -> str:
    """The best number of phases in untrained networks, in words; empty where one has no effects."""
    try:
        fresh = [_fit(network.control).k for network in networks if network.control is not None]
    except ConfigError:
        return ""
    return f"; in an untrained network the best number is {_range(sorted(fresh))}"


def _fit(sweep: xr.Dataset) -> phases.Phases:
    return phases.measure(sweep, across_seeds.lead_ablation(sweep), ordered=False)


def _mean_and_ends(margins: Float[np.ndarray, " network"]) -> str:
    mean, (low, high), _ = over_seeds(margins)
    return f"{mean:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else "")


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


QUESTIONS = (
    Question(
        "complexity",
        "Circuits for natural images are more complex than those for synthetic ones.",
        "Ratio, CelebA over synthetic at matched loss, of the first measure that rises on the ladder of "
        "synthetic faces (complexity 0 < 2 < 4, Welch over seeds): effective components of loss increase "
        "over excess loss, size of circuits, effective components of relative loss increase; loss increases "
        "averaged over seeds first.",
        "1.084 ± 0.008, p < 0.001",
        complexity.examine,
    ),
    Question(
        "divergence",
        "Attention entropy differs between the data sets.",
        "Root mean square over heads, matched within layers, of what data sets add to the difference of mean "
        "entropy between networks, nats; all timesteps together. p by relabeling networks, exact; 'not "
        "supported' if the 95 % interval ends below 0.015 nats.",
        "0.015 to 0.166 across timesteps",
        attention.divergence,
    ),
    Question(
        "variation",
        "The difference of attention entropy varies with the timestep.",
        "Largest minus smallest over timesteps of what data sets add, nats. p by relabeling networks, means "
        "of heads over timesteps removed: exact under a difference that is the same at all timesteps.",
        "0.015 to 0.166 across timesteps",
        attention.variation,
    ),
    Question(
        "roles",
        "Attention heads have roles, the same in every training.",
        "Correlation over targets of the selectivity of matched heads, mean over pairs of training seeds of "
        "one data set, minus that of heads shuffled within their layers; mean of the data sets. p is the "
        "largest of: shuffles in either data set, and no network having a role beyond untrained heads. 'Not "
        "supported' if the 95 % interval ends below 0.1.",
        "8 distinct mechanisms",
        attention.roles,
    ),
    Question(
        "bottlenecks",
        "Some components are bottlenecks, whatever replaces them.",
        "Pooled relative loss increase, %, of the component selected by the other half of the networks, "
        "least of the ablations that change it. p against 25 %, larger of both halves, and against untrained "
        "networks and random channel sets where the study holds them.",
        "degradation of 25.6 % to 128.3 %",
        bottlenecks.examine,
    ),
    Question(
        "phases",
        "Denoising has four distinct phases.",
        "Held-out log-likelihood per cell of four phases minus the best of any other number from 1 to 8 and "
        "of polynomials with as many coefficients (a smooth trend over timesteps).",
        "4 phases",
        _phases,
    ),
    Question(
        "entropy",
        "Heads with low entropy matter more.",
        "Rank correlation within layers of mean H / ln Nk and pooled |ΔL/L| over heads, minus that of the "
        "untrained network of the same seed; mean over networks.",
        "specialised mechanisms at entropies of 2.67 to 4.16",
        attention.entropy,
    ),
)
