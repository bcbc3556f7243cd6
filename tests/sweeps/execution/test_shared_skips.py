"""Rows that share a skip, against a pass for each intervention."""

import dataclasses

import jax
import numpy as np

from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.interventions.build import ablate
from mechdiff.sweeps.execution import engine, shared_skips

KEY, T = jax.random.key(2), 20


def test_whatever_changes_a_skip_acts(denoiser, images, monkeypatch):
    """Alone, with what joins before the skip is made and after it, by a part, by a direction, in a window."""
    late, skip = "up0.block0.res", "up0.block1.skip"
    named = [[skip], [skip, "down0.block0.res"], [skip, late], [late, "up0.block0.skip"], [], *[[late]] * 7]
    single = [ablate(denoiser.identity, names) for names in named]
    gate = {site: np.stack([intervention.gate[site] for intervention in single]) for site in single[0].gate}
    gate[skip][4, ::2] = 0.5
    direction = np.zeros((len(named), 1, 1, gate[skip].shape[1]), np.float32)
    direction[6] = 0.3
    window = np.array([[0, 1000]] * len(named), np.int32)
    window[7] = T + 1, T + 9
    replacement = {**denoiser.identity.replacement, skip: np.float32([[[0.7]]])}
    fields = {"gate": gate, "replacement": replacement, "window": window, "add": {skip: direction}}
    stacked = dataclasses.replace(denoiser.identity, **fields)

    counts, find = [], shared_skips.find_own
    monkeypatch.setattr(shared_skips, "find_own", lambda *args: (counts.append(args[-1]), find(*args))[1])
    batch = EvalBatch(images[:3], np.arange(3), T, KEY)
    runner = engine.Engine(denoiser, rows=100, devices=tuple(jax.devices()[:1]))
    shared, plan = runner.measure(stacked, batch), runner._plan
    assert max(counts) == 5
    monkeypatch.setattr(runner, "_plan", lambda *args: plan(*args)._replace(changed_skips=()))
    whole = runner.measure(stacked, batch)
    np.testing.assert_allclose(shared.loss, whole.loss, rtol=1e-5)
    assert np.abs(whole.loss[:7] / whole.clean_loss - 1).min() > 1e-4
    np.testing.assert_allclose(shared.loss[7], shared.clean_loss, rtol=1e-6)
