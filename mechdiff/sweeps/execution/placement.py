"""Denoisers on the devices of a mesh, kept there from one sweep to the next."""

import weakref

import jax
from jax.sharding import Mesh

from mechdiff.core import devices
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import memory

KEPT_BYTES = 2**26  # of parameters; larger ones would hold much memory, and placing them again costs little

_kept: dict[int, dict[Mesh, Examinable]] = {}  # id of a living denoiser -> mesh -> the placed denoiser


def placed(denoiser: Examinable, mesh: Mesh) -> Examinable:
    """The denoiser with its arrays on every device of a mesh.

    A small denoiser is placed once for all its sweeps, unless it has NumPy arrays: these could be written to,
    and later sweeps would not see the change. Placement is per mesh, since JAX takes the layout of results
    from the mesh of the arguments, and mixes up meshes with equal axis names and different shapes.
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
