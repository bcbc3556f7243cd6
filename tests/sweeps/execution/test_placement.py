"""Denoisers that stay on their devices, as long as they live and no longer."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core import devices
from mechdiff.sweeps.execution import placement


def test_a_small_denoiser_is_placed_once_and_goes_with_it(denoiser):
    mine, mesh = jax.tree.map(jnp.asarray, denoiser), devices.over(1)
    kept = len(placement._kept)
    placed = placement.placed(mine, mesh)
    assert placement.placed(mine, mesh) is placed
    assert placement.placed(dataclasses.replace(mine), mesh) is not placed
    np.testing.assert_array_equal(placed.schedule.log_snr, mine.schedule.log_snr)
    del mine
    gc.collect()
    assert len(placement._kept) == kept


def test_a_large_denoiser_is_not_kept(denoiser, monkeypatch):
    monkeypatch.setattr(placement, "KEPT_BYTES", 0)
    mine, kept = jax.tree.map(jnp.asarray, denoiser), len(placement._kept)
    placement.placed(mine, devices.over(1))
    assert len(placement._kept) == kept


def test_parameters_that_can_be_written_to_are_placed_anew(denoiser):
    mine = dataclasses.replace(denoiser, params=jax.tree.map(_writable, denoiser.params))
    mesh = devices.over(1)
    before = placement.placed(mine, mesh)
    leaf = jax.tree.leaves(mine.params)[0]
    leaf += 1
    after = placement.placed(mine, mesh)
    np.testing.assert_array_equal(jax.tree.leaves(after.params)[0], leaf)
    assert not np.array_equal(jax.tree.leaves(before.params)[0], leaf)


def _writable(leaf: np.ndarray) -> np.ndarray:
    """A copy that JAX has to copy again: it shares memory that begins at a multiple of 64 bytes."""
    room = np.empty(leaf.size + 17, leaf.dtype)
    begin = next(i for i in range(17) if room[i:].ctypes.data % 64)
    copy = room[begin : begin + leaf.size].reshape(leaf.shape)
    copy[...] = leaf
    return copy
