"""Denoisers on the devices of a mesh, kept there from one sweep to the next."""

import weakref

import jax
from jax.sharding import Mesh

from mechdiff.core import devices
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import memory

KEPT_BYTES = 2**26  # of parameters; to place more takes memory that counts, and no share of a sweep's time

_kept: dict[int, dict[Mesh, Examinable]] = {}  # id of a denoiser that is alive -> mesh -> it, placed


def placed(denoiser: Examinable, mesh: Mesh) -> Examinable:
    """The denoiser with its arrays on every device of a mesh; a small one is placed once for all its sweeps,
    unless it has arrays that can be written to (NumPy's): its sweeps would not see what was written.

    Of that very mesh: JAX reads the layout of the results off the mesh of the arguments, and two of equal
    axis names but other shapes are mixed up.
    """
    immutable = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(denoiser))
    if not immutable or memory.tree_bytes(denoiser.params) > KEPT_BYTES:
        return devices.everywhere(mesh, denoiser)
    if id(denoiser) not in _kept:
        _kept[id(denoiser)] = {}
        weakref.finalize(denoiser, _kept.pop, id(denoiser)).atexit = False
    by_mesh = _kept[id(denoiser)]
    if mesh not in by_mesh:
        by_mesh[mesh] = devices.everywhere(mesh, denoiser)
    return by_mesh[mesh]
