"""Scores against finite differences, exact ablations and planted redundancy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import hypergeom, spearmanr

from mechdiff import stats
from mechdiff.circuits import attribution, audits, score_agreement, screen_scores, screen_tables, screening
from mechdiff.circuits.attribution import Expansion
from mechdiff.circuits.screening import ScreenConfig
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import leave_one_out, set_gate
from mechdiff.interventions.components import component_at
from mechdiff.models import untrained
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, denoise
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution.engine import Engine

KEY = jax.random.key(3)
LEVELS = [4, 30]
POINTS = ("identity", "ablated")


@pytest.fixture(scope="module")
def everything(denoiser):
    return components(denoiser.unet, channel_groups=4)


@pytest.fixture(scope="module")
def scores(denoiser, images, everything):
    return attribution.gate_scores(
        denoiser,
        EvalSet(images, LEVELS, KEY),
        chosen=everything,
        expansion=Expansion(random_vectors=64),
        block=6,
    )


@pytest.fixture(scope="module")
def plain(denoiser, images):
    """Prediction and loss per image under an intervention, at the first level."""

    @jax.jit
    def run(denoiser, intervention):
        noise = image_noise(KEY, jnp.arange(6), images.shape[1:])
        at = jnp.full(6, LEVELS[0])
        x_t = q_sample(denoiser.schedule, images, at, noise)
        eps = denoise(denoiser.unet, denoiser.schedule, denoiser.params, intervention, x_t, at)
        return eps, jnp.mean((eps - noise) ** 2, axis=(1, 2, 3))

    return lambda intervention, acting=denoiser: run(acting, intervention)


@pytest.mark.parametrize(
    "name", ["down0.block0.res", "mid.attn0.head1", "up0.block1.skip.4-6", "up0.block0.time"]
)
def test_both_parts_are_what_finite_differences_say(denoiser, everything, scores, plain, name):
    component = component_at(everything, name)
    site, (start, stop) = component.site, component.index

    def at(dose):
        gate = {key: np.array(value) for key, value in denoiser.identity.gate.items()}
        gate[site][start:stop] = dose
        return (np.asarray(a, np.float64) for a in plain(dataclasses.replace(denoiser.identity, gate=gate)))

    h = 2.0**-6
    (eps_low, loss_low), (eps_high, loss_high) = at(1 - h), at(1 + h)
    slope = (loss_high - loss_low) / (2 * h)
    bend = (((eps_high - eps_low) / (2 * h)) ** 2).mean(axis=(1, 2, 3))
    result = scores.sel(component=name).isel(t=0)
    np.testing.assert_allclose(result["first"], -slope, atol=2e-2 * np.abs(slope).max() + 1e-5)
    # 64 random vectors an image: the mean over images is known to a few per cent.
    assert float(result.second.mean()) == pytest.approx(bend.mean(), rel=0.3)


def test_scores_of_channel_groups_add_up_to_first_order(everything, scores):
    whole = scores["first"].sel(component="up0.block1.skip")
    groups = [c.name for c in everything if c.name.startswith("up0.block1.skip.")]
    assert len(groups) == 4
    np.testing.assert_allclose(scores["first"].sel(component=groups).sum("component"), whole, atol=1e-6)


def test_the_clean_loss_is_that_of_the_engine_and_scores_don_t_move_with_the_block(
    denoiser, images, everything, scores
):
    few = attribution.gate_scores(
        denoiser,
        EvalSet(images, LEVELS, KEY),
        chosen=everything,
        expansion=Expansion(random_vectors=64),
        block=3,
    )
    np.testing.assert_allclose(few.score, scores.score, rtol=1e-3, atol=1e-6)
    engine = Engine(denoiser, devices=tuple(jax.devices()[:1]))
    stacked = dataclasses.replace(
        denoiser.identity, gate={k: np.asarray(v)[None] for k, v in denoiser.identity.gate.items()}
    )
    result = engine.measure(stacked, EvalBatch(images, np.arange(6), LEVELS[1], KEY))
    np.testing.assert_allclose(scores.clean_loss[1], result.clean_loss, rtol=1e-5)


def test_at_the_ablated_point_a_small_network_of_gates_is_scored_by_what_each_restores(
    denoiser, images, plain
):
    """The exact L(without all) - L(with one alone) ranks as the score does where heads do little."""
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf * np.float32(0.1 if path[-2].key == "out" else 1), denoiser.params
    )
    denoiser = dataclasses.replace(denoiser, params=params)
    chosen = [c for c in components(denoiser.unet) if c.component_type == "head"]
    result = attribution.gate_scores(
        denoiser,
        EvalSet(images, LEVELS[:1], KEY),
        chosen=chosen,
        expansion=Expansion(at="ablated", random_vectors=64),
        block=6,
    )
    none = set_gate(denoiser.identity, chosen, 0.0)
    before = plain(none, denoiser)[1]
    np.testing.assert_allclose(result.clean_loss[0], before, rtol=1e-5)
    restored = [float((before - plain(set_gate(none, [c], 1.0), denoiser)[1]).mean()) for c in chosen]
    assert spearmanr(restored, result.score.mean(("t", "image")))[0] > 0.9
    assert (result.second <= 0).all()


def test_single_channels_share_one_program(denoiser, images, monkeypatch):
    other = dataclasses.replace(denoiser.unet, sample_clip=2.0)  # traced anew, to a program that is known
    denoiser = dataclasses.replace(denoiser, unet=other)
    traces, inner = [], Denoiser.predict
    monkeypatch.setattr(Denoiser, "predict", lambda *args: (traces.append(1), inner(*args))[1])
    every = components(denoiser.unet, channel_groups=1000)  # single channels
    assert len(every) > 60
    for at in ("identity", "ablated"):
        attribution.gate_scores(
            denoiser,
            EvalSet(images[:3], [7, 8, 9], KEY),
            chosen=every,
            expansion=Expansion(at=at, random_vectors=64),
            block=3,
        )
    assert len(traces) == 1


@pytest.fixture(scope="module")
def exact(denoiser, images, tmp_path_factory):
    """Deg%_t of every component by exact runs."""
    folder, config = tmp_path_factory.mktemp("exact"), SweepConfig(ablations=("zero",), image_block=6)
    whole = ablation_sweep(denoiser, EvalSet(images, LEVELS, KEY), folder, config=config).isel(ablation=0)
    return 100 * (whole.loss.mean("image") / whole.clean_loss.mean("image") - 1).values


def known_losses(exact, names):
    """In place of `screen_scores.exact_losses`: of six images alike, with the increases `exact`."""

    def run(*args, **_):
        increase = exact[[names.index(component.name) for component in args[3]]].astype(np.float64)
        loss = np.repeat(1 + increase[..., None] / 100, 6, axis=-1)
        return screen_scores.ExactLosses(loss, np.ones(loss.shape[1:]), np.zeros(len(loss)))

    return run


def test_screening_finds_what_exact_runs_find_and_computes_nothing_twice(
    denoiser, images, exact, tmp_path, monkeypatch
):
    ran, run = [], ablation_sweep

    def recording(*args, **kwargs):
        ran.extend(component.name for component in kwargs["chosen"])
        return run(*args, **kwargs)

    monkeypatch.setattr(screen_scores, "ablation_sweep", recording)
    result = screening.screen_and_verify(
        denoiser,
        EvalSet(images, LEVELS, KEY),
        tmp_path / "a",
        config=ScreenConfig(k=3, shortlist=5, audit=6, miss_bound=0.6, random_vectors=8),
    )
    assert len(ran) == len(set(ran)) == np.isfinite(result.effect).sum()
    assert set(result.shortlist) | set(result.audited) <= set(ran)
    assert result.miss_interval[0] <= result.miss_rate <= result.miss_interval[1] <= 0.6
    known = np.isfinite(result.effect)
    np.testing.assert_allclose(result.effect[known], exact.mean(1)[known], rtol=1e-3, atol=1e-3)
    intervals = screen_tables.effect_intervals(result, stats.units_from(None, 6))
    wider = screen_tables.effect_intervals(
        dataclasses.replace(result, precision_error=np.full(len(known), 0.5)), stats.units_from(None, 6)
    )
    np.testing.assert_allclose((wider.high - intervals.high)[known], 0.5)
    assert (intervals.low[known] <= result.effect[known]).all() and np.isnan(intervals.low[~known]).all()
    assert (result.effect[known] <= intervals.high[known]).all() and intervals.n == 6
    split = result.fidelity
    assert set(split.by_part) <= {"res", "head", "skip", "time"} and set(split.by_t) == set(LEVELS)
    assert sum(part.n for part in split.by_part.values()) == split.overall.n == known.sum()


@pytest.fixture(scope="module")
def damage(denoiser, images):
    """Predicted Deg%_t of every component at each point, by the definition."""
    scored = {
        at: attribution.gate_scores(
            denoiser, EvalSet(images, LEVELS, KEY), expansion=Expansion(at=at, random_vectors=8)
        )
        for at in POINTS
    }
    base = scored["identity"].clean_loss.mean("image").values
    results = {at: 100 * scored[at].score.mean("image").values / base for at in POINTS}
    first, last = results["identity"], results["ablated"]
    larger = abs(first.mean(1)) >= abs(last.mean(1))
    assert 0 < larger.sum() < len(larger)  # each point wins somewhere
    return results | {"either": np.stack([first[i] if won else last[i] for i, won in enumerate(larger)])}


def test_quality_compares_all_components_at_every_point_with_their_exact_runs(
    denoiser, images, exact, damage, tmp_path
):
    result = screening.quality(
        denoiser, EvalSet(images, LEVELS, KEY), tmp_path, config=ScreenConfig(random_vectors=8, k=5)
    )
    assert result.keys() == damage.keys()
    for point, predicted in damage.items():
        expected = score_agreement.agreement(predicted.mean(1), exact.mean(1), 5)
        assert dataclasses.astuple(result[point].overall) == pytest.approx(
            dataclasses.astuple(expected), abs=0.01
        )
        assert result[point].overall.n == len(exact) == sum(part.n for part in result[point].by_part.values())


def test_summaries_show_the_median_and_the_worst_network_and_pass_over_what_is_undefined():
    at = lambda rank, sign, recall: score_agreement.Agreement(5, 3, rank, sign, recall, 1.0)

    def single(rank, part):
        return score_agreement.ScoreAgreement(
            at(rank, 1.0, 1.0), {"head": at(part, 0.5, 0.25)}, {9: at(0.1, 0.2, 0.3)}
        )

    nets = [single(0.9, float("nan")), single(0.7, 0.6), single(0.8, float("nan"))]
    rows = [line.split() for line in score_agreement.summary([{"identity": net} for net in nets])[1:]]
    assert " ".join(rows[0]) == "identity: all 0.80 0.70 1.00 1.00 1.00 1.00 0.60 1.00 1.00 1.00"
    assert " ".join(rows[1]) == "identity: head 0.60 0.60 0.50 0.50 0.25 0.25 0.60 1.00 1.00 1.00"
    assert " ".join(rows[2]) == "identity: t = 9 0.10 0.10 0.20 0.20 0.30 0.30 0.60 1.00 1.00 1.00"


@pytest.mark.parametrize("point", audits.EXPANSIONS)
def test_a_screen_ranks_by_the_point_that_is_asked_for(
    denoiser, images, exact, damage, tmp_path, monkeypatch, point
):
    names = [component.name for component in components(denoiser.unet)]
    monkeypatch.setattr(screening, "exact_losses", known_losses(exact, names))
    settings = ScreenConfig(k=3, shortlist=4, audit=5, miss_bound=1.0, random_vectors=8, point=point)
    result = screening.screen_and_verify(denoiser, EvalSet(images, LEVELS, KEY), tmp_path, config=settings)
    np.testing.assert_allclose(result.score, damage[point].mean(1), rtol=1e-5)
    order = np.argsort(-abs(damage[point].mean(1)))
    assert result.shortlist == tuple(names[i] for i in order[:4]) and len(result.audited) == 5
    assert set(result.scores) == {"identity"} | ({"ablated"} if point != "identity" else set())
    shown = screen_tables.lines(result, names)
    done = [names.index(line.split()[0]) for line in shown[1:10]]
    assert set(done) == {names.index(name) for name in (*result.shortlist, *result.audited)}
    sizes = abs(exact.mean(1)[done])
    assert (np.diff(sizes) <= 0).all()
    assert float(shown[1].split()[3]) == pytest.approx(exact.mean(1)[done[0]], abs=1e-3)
    assert shown[11].split()[:2] == ["all", "9"] and f"9 of {len(names)} verified" in shown[-1]


def test_a_point_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="'ablatd'; closest: ablated"):
        ScreenConfig(point="ablatd")


def test_an_untrained_twin_is_a_new_network_in_which_every_component_matters(denoiser, images):
    fresh, again, other = (untrained.untrained(denoiser, seed) for seed in (1, 1, 2))
    assert fresh.name == "untrained-random" and fresh.unet == denoiser.unet
    for a, b, c in zip(*(jax.tree.leaves(item.params) for item in (fresh, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        if a.ndim > 1:  # a kernel; none is left at zero
            assert a.std() > 0.3 / np.sqrt(np.prod(a.shape[:-1])) and not np.allclose(a, c)
    stacked = leave_one_out(fresh.identity, components(fresh.unet))[1]
    engine = Engine(fresh)
    assert (engine.measure(stacked, EvalBatch(images, np.arange(6), LEVELS[0], KEY)).change > 1e-8).all()


def test_a_screen_that_misses_widens_until_all_is_verified(denoiser, images, exact, tmp_path, monkeypatch):
    """Scores of pure noise: the audit shows the misses."""
    real, names = attribution.gate_scores, [component.name for component in components(denoiser.unet)]

    def useless(*args, **kwargs):
        result = real(*args, **kwargs)
        return result.assign(
            score=(result.score.dims, np.random.default_rng(0).normal(size=result.score.shape))
        )

    monkeypatch.setattr(screen_scores, "gate_scores", useless)
    monkeypatch.setattr(screening, "exact_losses", known_losses(exact, names))
    settings = ScreenConfig(k=5, shortlist=5, audit=8, miss_bound=0.05, random_vectors=8)
    result = screening.screen_and_verify(denoiser, EvalSet(images, LEVELS, KEY), tmp_path, config=settings)
    np.testing.assert_allclose(result.effect, exact.mean(1))
    assert result.audited == () and result.miss_interval == (0.0, 0.0)


def test_the_miss_interval_covers_wherever_the_audits_stop():
    """Simulated: a quarter of the rest are misses at every size, the bound is below that."""

    def covered(level, runs=100):
        rng, good = np.random.default_rng(0), 0
        settings = ScreenConfig(k=20, shortlist=20, audit=25, miss_bound=0.2)
        for _ in range(runs):
            effect = np.where(rng.random(400) < 0.25, 2.0, 0.5)
            effect[:20] = 1
            size, _, _, _, (low, high) = screening.audit_until(
                np.arange(400), effect.__getitem__, settings, rng, confidence=level
            )
            bar = np.sort(effect[:size])[::-1][19]
            share = (effect[size:] > bar).mean() if size < 400 else 0.0
            good += low - 1e-9 <= share <= high + 1e-9
        return good / runs

    assert covered(0.8) >= 0.8


def test_the_share_of_a_finite_population_is_covered_exactly():
    for population, drawn in ((5, 3), (42, 30), (100, 10)):
        ends = [stats.finite_population_interval(count, drawn, population) for count in range(drawn + 1)]
        for having in range(population + 1):
            inside = [low <= having / population <= high for low, high in ends]
            chance = hypergeom.pmf(np.arange(drawn + 1), population, having, drawn)
            assert chance[inside].sum() >= 0.95
    assert stats.finite_population_interval(3, 12, 12) == (0.25, 0.25) and stats.finite_population_interval(
        0, 0, 7
    ) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="count=4"):
        stats.finite_population_interval(4, 3, 9)


def test_agreement_counts_by_hand():
    score, effect = np.array([5.0, -4.0, 3.0, 0.1, 2.0]), np.array([6.0, 1.0, 5.0, -4.0, 0.5])
    result = score_agreement.agreement(score, effect, 2)
    assert (result.n, result.k, result.recall, result.listed, result.sign) == (5, 2, 0.5, 1.0, 0.6)
    assert result.by_chance == (0.4, 0.8)
    assert score_agreement.agreement(score, effect[::-1], 1).listed == 0
    assert result.spearman == pytest.approx(spearmanr(abs(score), abs(effect))[0])


@pytest.mark.parametrize("bad", [{"order": "second"}, {"at": "nowhere"}, {"random_vectors": 0}])
def test_bad_requests_of_scores_are_refused(bad):
    with pytest.raises(ConfigError):
        Expansion(**bad)


@pytest.mark.parametrize("bad", [{"k": 6}, {"audit": 0}, {"miss_bound": 0.0}])
def test_bad_requests_of_screens_are_refused(bad):
    with pytest.raises(ConfigError, match="need shortlist"):
        ScreenConfig(**{"shortlist": 5, "k": 2, **bad})


def test_what_was_prepared_is_not_compiled_again(denoiser, images):
    """Of another number of random vectors than other tests have, so that nothing is there before."""
    compiled = []

    def note(event: str, duration: float, fun_name: str = "", **_: object) -> None:
        if event.endswith("backend_compile_duration") and "_slopes" in fun_name:
            compiled.append(fun_name)

    expansion = Expansion(random_vectors=3)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        attribution.prepare(denoiser, len(images), len(LEVELS), expansion, block=6)
        assert len(compiled) == 1
        attribution.gate_scores(denoiser, EvalSet(images, LEVELS, KEY), expansion=expansion, block=6)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(compiled) == 1


def test_fewer_passes_of_the_compiler_move_scores_by_rounding_only(denoiser, images, monkeypatch):
    eval_set = EvalSet(images, LEVELS, KEY)
    expansion = Expansion(random_vectors=8)  # as `damage`, to compile once
    scores = {}
    for quickly in (False, True):
        program = attribution._program(quickly)
        monkeypatch.setattr(attribution, "_program", lambda _, program=program: program)
        scores[quickly] = attribution.gate_scores(denoiser, eval_set, expansion=expansion).score
        monkeypatch.undo()
    scale = float(np.abs(scores[False]).max())
    np.testing.assert_allclose(scores[True], scores[False], atol=1e-5 * scale)
