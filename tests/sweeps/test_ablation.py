"""The sweep against a plain loop, and its independence of chunks, kills and order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.interventions.build import ablate
from mechdiff.models.toy import toy_denoiser
from mechdiff.models.unet import apply_unet
from mechdiff.storage import labelled, work_sharing
from mechdiff.sweeps import activations, in_memory
from mechdiff.sweeps.ablation import ablation_sweep

KEY = jax.random.key(5)
CONFIG = SweepConfig(image_block=4, chunk=8)


@pytest.fixture(scope="module")
def levels(denoiser):
    return timesteps_by_log_snr(denoiser.schedule, 3)


@pytest.fixture(scope="module")
def means(denoiser, images, levels):
    return {
        "mean": activations.activation_means(
            denoiser, EvalSet(images[::-1].copy(), levels, jax.random.key(9)), block=4
        )
    }


@pytest.fixture(scope="module")
def swept(denoiser, images, levels, means, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return ablation_sweep(
        denoiser, EvalSet(images, levels, KEY), folder, config=CONFIG, replacements=means
    ), folder


def test_equals_a_plain_loop_over_ablations(denoiser, images, levels, means, swept):
    plain = jax.jit(apply_unet, static_argnums=0)
    noise = image_noise(KEY, np.arange(6), images.shape[1:])
    for level in (0, 2):
        t = jnp.full(6, levels[level])
        x_t = q_sample(denoiser.schedule, images, t, noise)
        clean = plain(denoiser.unet, denoiser.params, denoiser.identity, x_t, t)
        cell = swept[0].isel(t=level)
        np.testing.assert_allclose(cell.clean_loss, ((clean - noise) ** 2).mean((1, 2, 3)), rtol=1e-5)
        for ablation in ("zero", "mean"):
            replacements = activations.replacements_at(means["mean"], level)
            for name in ("down0.block0.res", "down0.attn0.head1", "up0.block1.skip", "mid.block1.time"):
                eps = plain(
                    denoiser.unet,
                    denoiser.params,
                    ablate(denoiser.identity, [name], ablation, replacements),
                    x_t,
                    t,
                )
                result = cell.sel(ablation=ablation, component=name)
                np.testing.assert_allclose(result.loss, ((eps - noise) ** 2).mean((1, 2, 3)), rtol=1e-5)
                np.testing.assert_allclose(
                    result.change, ((eps - clean) ** 2).mean((1, 2, 3)), rtol=1e-3, atol=1e-9
                )


def test_levels_with_pictures_of_their_own_equal_a_sweep_of_each(denoiser, images, levels, tmp_path):
    """Nested pictures: level by level the sweep of those alone, under noise of other numbers."""
    nested = np.stack([images[:2], images[2:4], images[4:]])
    config = dataclasses.replace(CONFIG, ablations=("zero",))
    result = ablation_sweep(denoiser, EvalSet(nested, levels, KEY), tmp_path, config=config)
    whole = ablation_sweep(denoiser, EvalSet(images, levels, KEY), tmp_path, config=config)
    assert dict(result.sizes) == {**whole.sizes, "image": 2}
    assert len(result.attrs["parameters_sha256"]) == 64 and "log-SNR from" in result.attrs["schedule"]
    assert result.attrs["images_total"] == whole.attrs["images_total"] == 6
    assert (result.attrs["nested"], whole.attrs["nested"]) == (True, False)
    for level in range(3):
        alone = whole.isel(t=level, image=slice(2 * level, 2 * level + 2))
        for name in ("loss", "change", "clean_loss"):
            np.testing.assert_allclose(result.isel(t=level)[name], alone[name], rtol=2e-5)
    rows = [
        activations.attention_stats(denoiser, EvalSet(x0, levels, KEY), block=2) for x0 in (nested, images)
    ]
    for level in range(3):
        alone = rows[1].isel(t=level, image=slice(2 * level, 2 * level + 2))
        np.testing.assert_allclose(rows[0].isel(t=level).entropy, alone.entropy, rtol=1e-5)


def test_every_component_of_a_random_network_bites(swept):
    assert (swept[0].change > 0).all()


def test_numbers_do_not_move_with_chunk_or_block(denoiser, images, levels, means, swept, tmp_path):
    other = ablation_sweep(
        denoiser,
        EvalSet(images, levels, KEY),
        tmp_path,
        config=SweepConfig(image_block=6, chunk=5),
        replacements=means,
    )
    for name in ("loss", "change", "clean_loss"):
        np.testing.assert_allclose(other[name], swept[0][name], rtol=2e-5, atol=1e-9)


def test_an_image_does_not_move_with_the_others(denoiser, images, levels, means, swept, tmp_path):
    few = ablation_sweep(
        denoiser, EvalSet(images[:3], levels, KEY), tmp_path, config=CONFIG, replacements=means
    )
    np.testing.assert_allclose(few.loss, swept[0].loss[..., :3], rtol=2e-5)


def test_a_killed_sweep_resumes_to_the_same_numbers_and_repeats_nothing(
    denoiser, images, levels, means, swept, tmp_path, monkeypatch
):
    put, written = labelled.put, []

    def dying(path, region, values):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(region["loss"])
        put(path, region, values)

    def run():
        return ablation_sweep(
            denoiser, EvalSet(images, levels, KEY), tmp_path, config=CONFIG, replacements=means
        )

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labelled, "put", dying)
        run()
    monkeypatch.setattr(labelled, "put", lambda *args: (written.append(args[1]["loss"]), put(*args)))
    resumed = run()
    assert len(written) == 2 * 3 * 2  # kinds x levels x blocks: each written once
    for name in ("loss", "change", "clean_loss"):
        np.testing.assert_array_equal(resumed[name], swept[0][name])
    run()
    assert len(written) == 12  # a finished sweep computes nothing


@pytest.mark.parametrize("first, second", [(2, 4), (3, 8), (8, 4)])
def test_a_killed_sweep_resumes_with_another_block_and_lacks_nothing(tmp_path, monkeypatch, first, second):
    """A piece of the second block is begun, but not whole: with 4 of 8 images it counted as done."""
    eval_set = EvalSet(np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32), [30], KEY)
    config, put = SweepConfig(ablations=("zero",)), labelled.put
    whole = ablation_sweep(toy_denoiser(), eval_set, tmp_path / "whole", config=config)
    monkeypatch.setattr(work_sharing, "start_offset", lambda pieces: 0)

    def run(block):
        config = SweepConfig(ablations=("zero",), image_block=block)
        return ablation_sweep(toy_denoiser(), eval_set, tmp_path / "killed", config=config)

    def dying(*args):
        put(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labelled, "put", dying)
        run(first)
    xr.testing.assert_allclose(run(second), whole)


def test_clean_losses_are_those_of_one_ablation_wherever_a_process_starts(tmp_path, monkeypatch):
    """Passes of several ablations differ in the last bits, here in more."""
    denoiser, eval_set = toy_denoiser(), EvalSet(np.zeros((2, 2, 2, 3), np.float32), [30, 90], KEY)
    measured = in_memory.block_losses

    def unlike(*arguments):
        losses, replaced = measured(*arguments), arguments[5] is not None
        return losses._replace(clean_loss=losses.clean_loss + replaced)

    monkeypatch.setattr("mechdiff.sweeps.ablation.block_losses", unlike)
    means, swept = {"mean": activations.activation_means(denoiser, eval_set)}, []
    for start in (0, 2):
        monkeypatch.setattr(work_sharing, "start_offset", lambda pieces, start=start: start)
        config = SweepConfig(ablations=("zero", "mean"))
        options = {"config": config, "replacements": means}
        swept.append(ablation_sweep(denoiser, eval_set, tmp_path / str(start), **options))
    xr.testing.assert_identical(*swept)


def test_a_loss_that_is_not_finite_is_computed_once_at_each_start(tmp_path, monkeypatch):
    images = np.full((2, 2, 2, 3), np.nan, np.float32)
    put, written = labelled.put, []
    monkeypatch.setattr(labelled, "put", lambda *args: (written.append(1), put(*args)))
    for starts in (1, 2):
        config = SweepConfig(ablations=("zero",))
        swept = ablation_sweep(toy_denoiser(), EvalSet(images, [30], KEY), tmp_path, config=config)
        assert np.isnan(swept.loss).all() and len(written) == starts


def test_two_processes_fill_one_sweep_and_compute_little_twice(
    denoiser, images, levels, means, swept, tmp_path, monkeypatch
):
    """Two fills of one store in turn, as two processes would: each begins at its own place."""
    put, written, places = labelled.put, [], iter([0, 6])
    monkeypatch.setattr(work_sharing, "start_offset", lambda pieces: next(places))
    second = None

    def run():
        return ablation_sweep(
            denoiser, EvalSet(images, levels, KEY), tmp_path, config=CONFIG, replacements=means
        )

    def recording(path, region, values):
        nonlocal second
        written.append(str(region["loss"]))
        put(path, region, values)
        if len(written) == 3:  # the first process has done three pieces: let the other do all it finds
            second = run()

    monkeypatch.setattr(labelled, "put", recording)
    first = run()
    assert len(written) == len(set(written)) == 12
    for result in (first, second):
        np.testing.assert_array_equal(result.loss, swept[0].loss)


def test_another_seed_or_network_can_not_reuse_numbers(denoiser, images, levels, means, swept):
    before = len(list(swept[1].iterdir()))
    zero = SweepConfig(image_block=4, chunk=8, ablations=("zero",))
    single = dataclasses.replace(denoiser, params=jax.tree.map(lambda p: p * 1.01, denoiser.params))
    for who, key in ((denoiser, jax.random.key(6)), (single, KEY)):
        result = ablation_sweep(who, EvalSet(images, levels[:1], key), swept[1], config=zero)
        assert not np.allclose(result.loss, swept[0].loss[:1, :, :1], rtol=1e-4)
    assert len(list(swept[1].iterdir())) == before + 2


def test_other_gates_under_the_same_names_can_not_reuse_numbers(tmp_path):
    """Of components of one's own making, and of a denoiser under which one is ablated already."""
    toy, eval_set = toy_denoiser(), EvalSet(np.ones((2, 2, 2, 3), np.float32), [30], KEY)
    first, second, _ = toy.components()
    renamed = dataclasses.replace(second, name=first.name)
    ablated = dataclasses.replace(toy, identity=ablate(toy.identity, [second]))
    config = SweepConfig(ablations=("zero",))
    losses = [
        ablation_sweep(who, eval_set, tmp_path, config=config, chosen=[component]).loss.values
        for who, component in ((toy, first), (toy, renamed), (ablated, first))
    ]
    for other in losses[1:]:
        assert not np.allclose(other, losses[0], rtol=1e-3)


def test_numbers_of_another_precision_are_other_numbers(denoiser):
    digests = denoiser.digests()
    with jax.default_matmul_precision("float32"):
        assert denoiser.digests() == digests
    with jax.default_matmul_precision("bfloat16"):
        assert denoiser.digests() != digests


def test_an_ablation_without_replacements_is_refused(denoiser, images, levels, tmp_path):
    with pytest.raises(ConfigError, match="mean ablation needs replacements"):
        ablation_sweep(denoiser, EvalSet(images, levels, KEY), tmp_path, config=CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_one_line_with_a_way_out(denoiser, images, levels, tmp_path):
    config = SweepConfig(image_block=6, chunk=8, ablations=("zero",))
    ablation_sweep(denoiser, EvalSet(images, levels[:1], KEY), tmp_path, config=config)
    (store,) = tmp_path.iterdir()
    (store / "loss" / ".zarray").write_text("{")
    with pytest.raises(CheckpointError, match="delete that folder"):
        ablation_sweep(denoiser, EvalSet(images, levels[:1], KEY), tmp_path, config=config)
