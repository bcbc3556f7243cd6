"""Second-order effects of pairs of components: redundancy is where single ablations mislead.

The synergy of a pair is L(without both) - L(without a) - L(without b) + L: above 0 where each makes up for
the other's loss (redundancy), below 0 where the damage of one makes the other useless. To second order it
is the Hessian of the loss in the two gates.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.config import UNetConfig
from mechdiff.diffusion import image_noise, q_sample
from mechdiff.engine import Engine
from mechdiff.interventions import Component, Intervention, ablate, leave_one_out
from mechdiff.schedules import NoiseSchedule
from mechdiff.sweep import Subject
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import denoise


@functools.partial(jax.jit, static_argnames=("unet",))
def _curvatures(
    unet: UNetConfig,
    schedule: NoiseSchedule,
    params: PyTree,
    identity: Intervention,
    directions: PyTree,
    x0: Images,
    t: Int[Array, ""],
    indices: Int[Array, " batch"],
    key: PRNGKey,
) -> Float[Array, "components components"]:
    """d_a^T H d_b, H being the Hessian of the mean loss in the gates: one product with H per component."""
    noise = image_noise(key, indices, x0.shape[1:])
    at = jnp.full(len(x0), t)
    x_t = q_sample(schedule, x0, at, noise)

    def loss(gate):
        point = dataclasses.replace(identity, gate=gate)
        return jnp.mean((denoise(unet, schedule, params, point, x_t, at) - noise) ** 2)

    def along(direction):
        # Reverse over reverse: our convolution on CPUs has no forward mode.
        slope = lambda gate: _dot(jax.grad(loss)(gate), direction)  # noqa: E731
        product = jax.grad(slope)(dict(identity.gate))
        return jax.vmap(lambda other: _dot(product, other))(directions)

    return jax.lax.map(along, directions)


def _dot(a: PyTree, b: PyTree) -> Array:
    return sum(jnp.vdot(a[site], b[site]) for site in a)


def pair_scores(
    subject: Subject,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    chosen: Sequence[Component],
) -> xr.DataArray:
    """Second-order synergy of every pair of the `chosen` components under kind `zero`, dims `a, b, t`.

    The cost grows with their number, not with that of pairs. The diagonal is a component's own curvature.

    Args:
      images: in [-1, 1], all in one program; image i has the noise of `image_noise(key, i)`.
    """
    stacked = leave_one_out(subject.identity, chosen)[1]
    directions = {site: 1 - leaf for site, leaf in stacked.gate.items()}
    network = subject.unet, subject.schedule, subject.params, subject.identity, directions
    index, x0 = np.arange(len(images)), np.asarray(images)
    found = [np.asarray(_curvatures(*network, x0, int(t), index, key)) for t in timesteps]
    names = [component.name for component in chosen]
    coords = {"a": names, "b": names, "t": np.asarray(timesteps)}
    return xr.DataArray(np.stack(found, -1), coords, ("a", "b", "t"))


def pair_effects(
    subject: Subject,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    pairs: Sequence[tuple[Component, Component]],
) -> xr.DataArray:
    """Exact synergy of pairs under kind `zero`, image by image, dims `pair, t, image`.

    The singles, the pairs and the clean network share image, noise and timestep.
    """
    singles = {component.name: component for component in itertools.chain(*pairs)}
    sets = [*((one,) for one in singles.values()), *pairs]
    gates = [ablate(subject.identity, one).gate for one in sets]
    gate = {site: np.stack([np.asarray(each[site]) for each in gates]) for site in gates[0]}
    stacked = dataclasses.replace(subject.identity, gate=gate)
    engine = Engine(subject.unet, subject.schedule, subject.params)
    place = {name: row for row, name in enumerate(singles)}
    left, right = ([place[pair[side].name] for pair in pairs] for side in (0, 1))
    found = []
    for t in timesteps:
        measured = engine.measure(stacked, np.asarray(images), np.arange(len(images)), int(t), key)
        alone, both = measured.loss[: len(singles)], measured.loss[len(singles) :]
        found.append(both - alone[left] - alone[right] + measured.clean_loss)
    coords = {
        "a": ("pair", [a.name for a, _ in pairs]),
        "b": ("pair", [b.name for _, b in pairs]),
        "t": np.asarray(timesteps),
        "image": np.arange(len(images)),
    }
    return xr.DataArray(np.stack(found, 1), coords, ("pair", "t", "image"))
