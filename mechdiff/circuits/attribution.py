"""Gradient scores of every component, at a cost that does not grow with the number of components.

An ablation moves the gates of a component from 1 to 0. The change of the denoising loss is expanded in the
gates: its first-order part is a gradient, and, since near a trained optimum that nearly vanishes, the
Gauss-Newton part of its curvature is added, which is the squared change of the prediction. Both come for all
units at once from products of a random vector with the Jacobian. They are *screening* scores:
`screening.screen_and_verify` checks them exactly.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff.core import devices, keys
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import ablate
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.activations import replacements_at
from mechdiff.sweeps.execution import memory


@functools.partial(jax.jit, static_argnames=("probes", "mesh"))
def _slopes(
    denoiser: Examinable,
    probes: int,
    mesh: Mesh,
    point: Intervention,
    t: Int[Array, ""],
    key: PRNGKey,
    probe_key: PRNGKey,
    x0: Images,
    indices: Int[Array, " batch"],
    condition: PyTree,
) -> tuple[Float[Array, " batch"], PyTree, PyTree]:
    """Each image's loss, its gate gradient, and v^T J / sqrt(pixels): v random signs, J = d eps / d gates."""

    def local(denoiser, point, t, key, probe_key, x0, indices, condition):
        batch = len(x0)
        noise = image_noise(key, indices, x0.shape[1:])
        at = jnp.full(batch, t)
        x_t = q_sample(denoiser.schedule, x0, at, noise)

        def predict(gate):
            changed = dataclasses.replace(point, gate=gate)
            return denoiser.predict(changed, x_t, at, condition)

        gate = {site: jnp.tile(leaf, (batch, 1)) for site, leaf in point.gate.items()}
        eps, pull = jax.vjp(predict, gate)
        pixels = eps[0].size
        (first,) = pull(2 * (eps - noise) / pixels)

        def probe(number):
            signs = jax.vmap(lambda image: jax.random.rademacher(image, x0.shape[1:], x0.dtype))
            return pull(signs(keys.per_image(jax.random.fold_in(probe_key, number), indices)))[0]

        second = jax.lax.map(probe, jnp.arange(probes))
        loss = jnp.mean((eps - noise) ** 2, axis=tuple(range(1, eps.ndim)))
        return loss, first, jax.tree.map(lambda v: v / np.sqrt(pixels), second)

    specs, outs = (*[ALL] * 5, IMAGES, IMAGES, IMAGES), (IMAGES, IMAGES, PartitionSpec(None, "images"))
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)
    return run(denoiser, point, t, key, probe_key, x0, indices, condition)


def gate_scores(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    chosen: Sequence[Component] | None = None,
    ablation: str = "zero",
    replacements: PyTree = None,
    order: str = "gauss_newton",
    at: str = "identity",
    probes: int = 4,
    block: int = 8,
) -> xr.Dataset:
    """Predicted loss increase of ablating each component, image by image.

    With L the loss in one component's gate, g its gradient and C = |d eps / d gate|^2 / pixels (half the
    Gauss-Newton curvature), at `identity` the score is L(0) - L(1) = C - g. At `ablated` the point is the
    network with all of `chosen` ablated, where redundant components don't hide each other: the score is
    L(without all) - L(with this one alone) = -C - g.

    Args:
      eval_set: images in [-1, 1], timesteps and noise, as in `sweeps.ablation_sweep`.
      order: `first`, or `gauss_newton` for both parts.
      at: the point of expansion, `identity` or `ablated`.
      chosen: components, overlapping or not, such as single channels (`unet.components(config, groups)`).
      ablation: others than `zero` need `replacements`, site -> `(timesteps, *site)`.
      probes: random vectors; the relative error of a curvature is about sqrt(2 / (probes x images)).
      block: images in one program.

    Returns:
      Dataset with `score`, its parts `first` (-g) and `second` (+-C; 0 where `order` is `first`), in units of
      the denoising loss, dims `component, t, image`, and `clean_loss` at the point, dims `t, image`.

    Raises:
      ConfigError: an unknown order or point, probes below 1, or an ablation without its replacements.
    """
    images, timesteps, key = eval_set.images, eval_set.timesteps, eval_set.key
    if order not in ("first", "gauss_newton") or at not in ("identity", "ablated"):
        raise ConfigError(f"order={order!r}, at={at!r}: choose first or gauss_newton, identity or ablated")
    if probes < 1:
        raise ConfigError(f"probes={probes} must be at least 1; 4 are usual")
    chosen = tuple(chosen or denoiser.components())
    images, timesteps = np.asarray(images), np.asarray(timesteps, np.int32)
    sites = sorted(denoiser.identity.gate)
    block = memory.rows_at_once(block, memory.gradient_bytes(denoiser.network))
    membership = _membership(denoiser.identity, sites, chosen)
    mesh = devices.over(block)
    program = devices.everywhere(mesh, denoiser), probes if order == "gauss_newton" else 0, mesh
    first = np.empty((len(chosen), len(timesteps), len(images)), np.float32)
    second, loss = np.zeros_like(first), np.empty(first.shape[1:], np.float32)
    for t_index, t in enumerate(timesteps):
        values = None if ablation == "zero" else replacements_at(replacements or {}, t_index)
        # At identity only the replacements matter, at the ablated point gates and replacements.
        point = ablate(denoiser.identity, chosen, ablation, values)
        if at == "identity":
            point = dataclasses.replace(point, gate=denoiser.identity.gate)
        for start in range(0, len(images), block):
            index = np.resize(np.arange(start, min(start + block, len(images))), block)
            probe_key = keys.stream(key, "probes")
            condition = jax.tree.map(lambda leaf, index=index: leaf[index], eval_set.condition)
            shown = images[index], index, condition
            losses, *derivatives = _slopes(*program, point, int(t), key, probe_key, *shown)
            gradient, products = (
                np.concatenate([np.asarray(part[site]) for site in sites], axis=-1) @ membership
                for part in derivatives
            )
            where = slice(start, min(start + block, len(images)))
            count = where.stop - where.start
            loss[t_index, where] = losses[:count]
            first[:, t_index, where] = -gradient[:count].T
            if order == "gauss_newton":
                sign = 1 if at == "identity" else -1
                second[:, t_index, where] = sign * (products[:, :count] ** 2).mean(0).T
    dims = ("component", "t", "image")
    return xr.Dataset(
        {
            "score": (dims, first + second),
            "first": (dims, first),
            "second": (dims, second),
            "clean_loss": (dims[1:], loss),
        },
        coords={
            "component": [component.name for component in chosen],
            "component_type": ("component", [component.component_type for component in chosen]),
            "t": timesteps,
            "image": np.arange(len(images)),
        },
        attrs={"denoiser": denoiser.name, "ablation": ablation, "order": order, "at": at, "probes": probes},
    )


def _membership(identity: Intervention, sites: list[str], chosen: Sequence[Component]) -> np.ndarray:
    """`(units of all sites, components)`: 1 where a unit belongs to a component."""
    widths = [identity.gate[site].shape[-1] for site in sites]
    first = dict(zip(sites, np.cumsum([0, *widths[:-1]]), strict=True))
    member = np.zeros((sum(widths), len(chosen)), np.float32)
    for column, component in enumerate(chosen):
        start, stop = component.index
        member[first[component.site] + start : first[component.site] + stop, column] = 1
    return member
