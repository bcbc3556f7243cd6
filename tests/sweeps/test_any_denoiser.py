"""Sweeps, scores and circuits of a function that is no UNet, against plain loops over its predictions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.ad_checkpoint import checkpoint_name as name

from mechdiff.analysis import entropy_causality, roles
from mechdiff.circuits import attribution, backups, integrated_gradients, interactions, redundancy, screening
from mechdiff.circuits.discovery import discover
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import ablate, leave_one_out
from mechdiff.models.traced import wrap
from mechdiff.storage import labelled
from mechdiff.sweeps import (
    activations,
    attention_patterns,
    interchange,
    optimal_ablation,
    replacements,
    temperature,
)
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution import drawing, engine, passes, rollout, shared_prefix
from mechdiff.sweeps.in_memory import sweep_in_memory
from mechdiff.sweeps.sampling import SampleSet, sampling_sweep
from mechdiff.sweeps.sequential import sequential_sweep
from mechdiff.sweeps.stopping import StoppingRule

SIDE, WIDTH, HEADS, CLASSES = 4, 8, 2, 3
SCHEDULE, KEY = cosine_schedule(50), jax.random.key(3)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (5, SIDE, SIDE, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0])
EVAL_SET = EvalSet(IMAGES, [5, 40], KEY, LABELS)


def transformer(params, x, t, label):
    """One block of attention and MLP over pixels; the class is added to every token."""
    h = x.reshape(len(x), -1, 3) @ params["enter"] + jnp.sin(t / 10)[:, None, None]
    h = h + name(params["labels"][label], "class")[:, None]
    q, k, v = ((h @ params[part]).reshape(*h.shape[:2], HEADS, -1) for part in "qkv")
    pattern = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
    heads = jnp.einsum("bhqk,bkhd->bqhd", name(pattern, "attn.pattern@1"), v)
    h = h + name(heads, "attn.head@2").reshape(h.shape) @ params["out"]
    h = h + name(jnp.tanh(h @ params["up"]) @ params["down"], "mlp")
    return (h @ params["leave"]).reshape(x.shape)


def parameters():
    shapes = {"enter": (3, WIDTH), "labels": (CLASSES, WIDTH), "out": (WIDTH, WIDTH), "leave": (WIDTH, 3)}
    shapes |= {part: (WIDTH, WIDTH) for part in "qkv"} | {"up": (WIDTH, 16), "down": (16, WIDTH)}
    return {part: np.float32(RNG.normal(size=shape) / np.sqrt(shape[0])) for part, shape in shapes.items()}


@pytest.fixture(scope="module")
def denoiser():
    example = IMAGES[:1], np.array([3]), LABELS[:1]
    return wrap(transformer, parameters(), schedule=SCHEDULE, example=example, name="transformer")


@pytest.fixture(scope="module")
def plain(denoiser):
    """Losses of an intervention by one call of the network, `(timesteps, images)`."""

    @jax.jit
    def at(t, denoiser, intervention):
        noise = image_noise(KEY, np.arange(len(IMAGES)), IMAGES.shape[1:])
        eps = denoiser.predict(intervention, q_sample(SCHEDULE, IMAGES, t, noise), t, LABELS)
        return jnp.mean((eps - noise) ** 2, axis=(1, 2, 3))

    rows = [np.full(len(IMAGES), t, np.int32) for t in EVAL_SET.timesteps]
    return lambda intervention: np.stack([at(t, denoiser, intervention) for t in rows])


def test_a_sweep_is_a_loop_over_ablations_and_is_not_computed_twice(denoiser, plain, tmp_path, monkeypatch):
    means = {"mean": activations.activation_means(denoiser, EVAL_SET, block=2)}
    config = SweepConfig(ablations=("zero", "mean"), image_block=2)
    swept = ablation_sweep(denoiser, EVAL_SET, tmp_path, config=config, replacements=means)
    np.testing.assert_allclose(swept["clean_loss"], plain(denoiser.identity), rtol=1e-5)
    for component in swept["component"].values:
        cells = swept["loss"].sel(component=component)
        np.testing.assert_allclose(
            cells.sel(ablation="zero"), plain(ablate(denoiser.identity, [component])), rtol=1e-5
        )
        for t_index in range(2):
            mean = activations.replacements_at(means["mean"], t_index)
            expected = plain(ablate(denoiser.identity, [component], "mean", mean))[t_index]
            np.testing.assert_allclose(cells.sel(ablation="mean")[t_index], expected, rtol=1e-5)
    monkeypatch.setattr(passes, "run_passes", None)
    again = ablation_sweep(denoiser, EVAL_SET, tmp_path, config=config, replacements=means)
    np.testing.assert_array_equal(again["loss"], swept["loss"])


def test_the_identity_among_interventions_changes_nothing_to_the_last_bit(denoiser):
    stacked = leave_one_out(denoiser.identity, denoiser.components())[1]
    gate = {site: np.concatenate([leaf, np.ones_like(leaf[:1])]) for site, leaf in stacked.gate.items()}
    losses = sweep_in_memory(denoiser, EVAL_SET, dataclasses.replace(stacked, gate=gate))
    assert (losses.change[-1] == 0).all() and (losses.change[:-1] > 0).all()


def test_interventions_are_traced_once(denoiser, monkeypatch):
    traces, inner = [], shared_prefix.forward
    monkeypatch.setattr(shared_prefix, "forward", lambda *args: (traces.append(1), inner(*args))[1])
    runner = engine.Engine(denoiser, rows=4, devices=tuple(jax.devices()[:1]))
    for seed in range(3):
        stacked = leave_one_out(denoiser.identity, denoiser.components())[1]
        gate = {site: leaf * np.float32(seed / 3) for site, leaf in stacked.gate.items()}
        stacked = dataclasses.replace(stacked, gate=gate)
        runner.measure(stacked, EvalBatch(IMAGES[:2], np.arange(2), 5 + seed, KEY, LABELS[:2]))
    assert len(traces) == 1


def test_directions_of_all_strengths_are_a_loop_over_them(denoiser, plain):
    direction = RNG.normal(size=(1, WIDTH)).astype(np.float32)
    strengths = np.array([0.0, 0.5, 2.0], np.float32)
    gate = {site: np.tile(leaf, (3, 1)) for site, leaf in denoiser.identity.gate.items()}
    stacked = dataclasses.replace(
        denoiser.identity, gate=gate, add={"mlp": strengths[:, None, None] * direction}
    )
    losses = sweep_in_memory(denoiser, EVAL_SET, stacked, block=3)
    for row, strength in enumerate(strengths):
        pushed = dataclasses.replace(denoiser.identity, add={"mlp": strength * direction})
        np.testing.assert_allclose(losses.loss[row], plain(pushed), rtol=1e-5)


def test_scores_shares_and_interactions_are_those_of_the_losses(denoiser, plain):
    whole = plain(denoiser.identity)
    scores = attribution.gate_scores(
        denoiser, EVAL_SET, expansion=attribution.Expansion(order="first"), block=2
    )
    step, head = 1e-2, "attn.head0"
    gate = {site: leaf.copy() for site, leaf in denoiser.identity.gate.items()}
    gate["attn.head"][0] -= step
    slope = (whole - plain(dataclasses.replace(denoiser.identity, gate=gate))) / step
    np.testing.assert_allclose(
        scores["first"].sel(component=head), -slope, atol=0.02 * np.abs(slope).max() + 2e-5
    )
    shares = integrated_gradients.integrated_gradients(denoiser, EVAL_SET, steps=64, block=5)
    nothing = plain(ablate(denoiser.identity, ".*"))
    np.testing.assert_allclose(shares["score"].sum("component"), nothing - whole, rtol=0.02, atol=1e-4)
    means = activations.activation_means(denoiser, EVAL_SET, block=2)
    shares = integrated_gradients.integrated_gradients(
        denoiser, EVAL_SET, ablation="mean", replacements=means, steps=64, block=5
    )
    for t_index, shared in enumerate(shares["score"].sum("component").values):
        here = {site: leaf[t_index] for site, leaf in means.items()}
        brought = (plain(ablate(denoiser.identity, ".*", "mean", here)) - whole)[t_index]
        np.testing.assert_allclose(shared, brought, rtol=1e-3, atol=1e-4)
    components = denoiser.components()
    pair = interactions.pair_effects(denoiser, EVAL_SET, [(components[0], components[-1])])
    both = plain(ablate(denoiser.identity, [components[0], components[-1]]))
    np.testing.assert_allclose(pair["without_both"][0], both, rtol=1e-5)
    curvature = interactions.pair_scores(denoiser, EVAL_SET, components[:2])["curvature"]
    assert np.isfinite(curvature).all() and (np.abs(curvature) > 0).any()


def test_screens_and_circuits_run(denoiser, plain, tmp_path):
    settings = screening.ScreenConfig(k=1, shortlist=2, audit=1)
    screen = screening.screen_and_verify(denoiser, EVAL_SET, tmp_path, config=settings)
    assert len(screen.shortlist) >= 2
    evaluator = CircuitEvaluator(denoiser, EVAL_SET)
    losses = evaluator.losses(evaluator.ends)
    np.testing.assert_allclose(losses[1], plain(denoiser.identity), rtol=1e-5)
    np.testing.assert_allclose(losses[0], plain(ablate(denoiser.identity, ".*")), rtol=1e-5)
    assert set(discover(evaluator).members) <= set(evaluator.names)


def test_replacements_of_every_kind_have_the_shape_of_the_sites(denoiser, tmp_path):
    config = SweepConfig(ablations=("resample", "noise", "optimal"), image_block=5)
    sources = {
        "resample": replacements.resample_replacements(denoiser, EVAL_SET),
        "noise": replacements.noise_replacements(denoiser, EVAL_SET),
        "optimal": optimal_ablation.optimal_replacements(denoiser, EVAL_SET, steps=2, batch=2),
    }
    swept = ablation_sweep(denoiser, EVAL_SET, tmp_path, config=config, replacements=sources)
    assert np.isfinite(swept["loss"]).all()
    zero = ablation_sweep(denoiser, EVAL_SET, tmp_path, config=SweepConfig(ablations=("zero",)))
    best = swept["loss"].sel(ablation="optimal").mean("image")
    assert (
        best <= zero["loss"][0].mean("image") + 1e-6
    ).all()  # zero is among the candidates, on these images


def test_samples_move_under_their_own_condition(denoiser, tmp_path):
    levels = [5, 20, 40]
    windows = rollout.even_windows(levels, 1)
    samples = SampleSet(levels, 4, KEY, LABELS[:4])
    swept = sampling_sweep(
        denoiser, samples, windows, tmp_path, config=SweepConfig(ablations=("zero",), image_block=2)
    )
    assert (swept["distance"].sel(component="mlp") > 0).all()
    drawn, alone = (
        np.asarray(drawing.draw_samples(denoiser, KEY, 3, 3, condition=np.array([0, other, 0])))
        for other in (1, 0)
    )
    np.testing.assert_allclose(drawn[[0, 2]], alone[[0, 2]], atol=1e-5)
    assert np.abs(drawn[1] - alone[1]).max() > 1e-3
    with pytest.raises(ConfigError, match="condition"):
        drawing.draw_samples(denoiser, KEY, 2, 3)


def test_a_sequential_sweep_ends(denoiser, tmp_path):
    images = RNG.uniform(-1, 1, (40, SIDE, SIDE, 3)).astype(np.float32)
    shown = EvalSet(images, [20], KEY, np.arange(40) % CLASSES)
    result = sequential_sweep(denoiser, shown, StoppingRule(1e6), tmp_path)
    assert result.decided.all() and (result.images == 32).all()


def test_entropy_is_that_of_the_named_patterns(denoiser):
    statistics = activations.attention_stats(denoiser, EVAL_SET, block=2)
    assert list(statistics["head"].values) == ["attn.head0", "attn.head1"]
    patterns = np.asarray(
        activations.activations(denoiser, IMAGES, 40, KEY, np.arange(5), LABELS, collection="patterns")[
            "attn.pattern"
        ]
    )
    expected = -(patterns * np.log(patterns)).sum(-1).mean(-1)
    np.testing.assert_allclose(statistics["entropy"].sel(t=40).T, expected, rtol=1e-4)


def test_groups_of_channels_are_components_too(denoiser, plain):
    groups = [group for group in denoiser.components(channel_groups=2) if group.name == "mlp.0-4"]
    losses = sweep_in_memory(denoiser, EVAL_SET, leave_one_out(denoiser.identity, groups)[1])
    gate = {site: leaf.copy() for site, leaf in denoiser.identity.gate.items()}
    gate["mlp"][:4] = 0
    np.testing.assert_allclose(
        losses.loss[0], plain(dataclasses.replace(denoiser.identity, gate=gate)), rtol=1e-5
    )


def test_a_sampling_sweep_goes_on_where_it_stopped(denoiser, tmp_path, monkeypatch):
    samples = SampleSet([5, 40], 2, KEY, LABELS[:2])
    windows, config = (
        rollout.even_windows([5, 40], 2),
        SweepConfig(ablations=("zero",), image_block=2, chunk=1),
    )
    whole = sampling_sweep(denoiser, samples, windows, tmp_path / "whole", config=config)
    roll, calls = rollout.roll, []

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return roll(*args, **options)

    monkeypatch.setattr(rollout, "roll", stopping)
    with pytest.raises(KeyboardInterrupt):
        sampling_sweep(denoiser, samples, windows, tmp_path / "stopped", config=config)
    again = sampling_sweep(denoiser, samples, windows, tmp_path / "stopped", config=config)
    np.testing.assert_array_equal(again["distance"], whole["distance"])


def patterns(denoiser, folder):
    return attention_patterns.pattern_effects(
        denoiser, EVAL_SET, ablations=("frozen",), block=3, folder=folder
    )


def paired(denoiser, folder):
    settings = redundancy.PairConfig(top=1, audit=1)
    others = EvalSet(IMAGES[:4], EVAL_SET.timesteps, jax.random.key(7), LABELS[:4])
    chosen = denoiser.components()[:3]
    return redundancy.verified_pairs(denoiser, EVAL_SET, others, chosen, config=settings, folder=folder)


def role_effects(denoiser, folder):
    names, stacked = leave_one_out(denoiser.identity, denoiser.components())
    return roles.role_effects(denoiser, EVAL_SET, stacked, names, folder=folder)


def backed_up(denoiser, folder):
    others = EvalSet(IMAGES[:4], EVAL_SET.timesteps, jax.random.key(7), LABELS[:4])
    chosen = denoiser.components()[:3]
    return backups.verified_backups(denoiser, EVAL_SET, others, chosen, count=2, folder=folder)


def tempered(denoiser, folder):
    effects = temperature.temperature_effects(denoiser, EVAL_SET, (0.5,), block=3, folder=folder)
    of_roles = entropy_causality.temperature_effects_on_roles(
        denoiser, effects, IMAGES, KEY, condition=LABELS, folder=folder
    )
    return xr.merge([effects, of_roles.rename(loss="role_loss", temperature="of_role")])


MEASURES = [(patterns, 4), (paired, 4), (role_effects, 2), (backed_up, 6), (tempered, 6)]


@pytest.mark.parametrize(("measure", "count"), MEASURES)
def test_what_was_measured_before_a_kill_is_not_measured_again(
    denoiser, tmp_path, monkeypatch, measure, count
):
    """Bit for bit what is measured in memory, whatever piece it stopped at; and not of other networks."""
    whole = measure(denoiser, None)
    put, pieces = labelled.put, []

    def counted(*args):
        pieces.append(args)
        put(*args)

    def stops_at_the_last(*args):
        if len(pieces) == count - 1:
            raise KeyboardInterrupt
        counted(*args)

    monkeypatch.setattr(labelled, "put", stops_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        measure(denoiser, tmp_path)
    monkeypatch.setattr(labelled, "put", counted)
    for _ in range(2):
        xr.testing.assert_identical(measure(denoiser, tmp_path), whole)
        assert len(pieces) == count
    other = dataclasses.replace(denoiser, params=jax.tree.map(lambda leaf: 2 * leaf, denoiser.params))
    measure(other, tmp_path)
    assert len(pieces) == 2 * count


def test_factors_are_carried_under_a_condition():
    def copied(params, x, t, label):
        return name(params * x, "copy")

    example = np.zeros((1, 8, 8, 3), np.float32), np.array([3]), LABELS[:1]
    copying = wrap(copied, np.float32(0.5), schedule=SCHEDULE, example=example)
    pairs = interchange.PairSet(KEY, ["glasses"], 2, condition=LABELS[:2])
    moved = interchange.interchange_effects(copying, [5], pairs)
    share = moved["moved"].values[np.isfinite(moved["moved"].values)]
    np.testing.assert_allclose(share, 1, atol=1e-4)  # the one component carries all that there is


def test_memory_is_told_from_the_program(denoiser):
    network = denoiser.network
    widest = SIDE**2 * WIDTH * 4
    assert widest <= network.row_bytes <= network.gradient_bytes
    forecast = engine.Engine(denoiser).forecast(leave_one_out(denoiser.identity, denoiser.components())[1], 5)
    assert forecast.one_pass >= forecast.smallest_pass >= 2 * network.row_bytes


def test_a_condition_for_other_images_is_refused():
    with pytest.raises(ConfigError, match="condition"):
        EvalSet(IMAGES, [5], KEY, LABELS[:3])
