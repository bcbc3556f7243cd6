"""Gradient scores of every component, at a cost that does not grow with the number of components.

An ablation moves the gates of a component from 1 to 0. The change of the denoising loss is expanded in the
gates: its first-order part is a gradient, and, since near a trained optimum that nearly vanishes, the
Gauss-Newton part of its curvature is added, which is the squared change of the prediction. Both come for all
units at once from products of a random vector with the Jacobian. They are *screening* scores:
`screening.screen_and_verify` checks them exactly.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff.core import devices, keys
from mechdiff.core.batches import batches
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey, PyTree
from mechdiff.diffusion.eval_set import BATCH, EvalBatch, EvalSet
from mechdiff.interventions.build import ablate
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.activations import replacements_at
from mechdiff.sweeps.coords import component_coords
from mechdiff.sweeps.execution import footprint, memory
from mechdiff.sweeps.execution.provenance import component_keys, provenance, result_key, store
from mechdiff.sweeps.in_memory import IMAGES as T_IMAGE
from mechdiff.sweeps.in_memory import in_blocks

MAX_QUICK_CALLS = 8  # a program that is called no more often takes longer to compile than to run


def _program(quickly: bool) -> Any:
    """`_slopes` as a program: compiled quickly, or to run fast."""
    return devices.jitted(_slopes, ("random_vectors", "mesh"), quickly)


def _slopes(
    denoiser: Examinable,
    random_vectors: int,
    mesh: Mesh,
    point: Intervention,
    batch: EvalBatch,
    vector_key: PRNGKey,
) -> tuple[Float[Array, " batch"], Float[Array, "batch units"], Float[Array, "random_vectors batch units"]]:
    """Each image's loss, its gate gradient, and v^T J / sqrt(pixels): v random signs, J = d eps / d gates.
    Units are those of all sites, sites in alphabetical order."""

    def local(denoiser, point, vector_key, batch):
        count, shape = len(batch.images), batch.images.shape[1:]
        x_t, t, noise = batch.noised(denoiser.schedule)

        def predict(gate):
            changed = dataclasses.replace(point, gate=gate)
            return denoiser.predict(changed, x_t, t, batch.condition)

        gate = {site: jnp.tile(leaf, (count, 1)) for site, leaf in point.gate.items()}
        eps, pull = jax.vjp(predict, gate)
        pixels = eps[0].size

        def signs(number):
            draw = jax.vmap(lambda key: jax.random.rademacher(key, shape, batch.images.dtype))
            return draw(keys.per_image(jax.random.fold_in(vector_key, number), batch.indices))

        def product(number):  # of the loss first, then of the signs: one backward pass to compile, not two
            loss_slope = 2 * (eps - noise) / pixels
            (slopes,) = pull(jnp.where(number == 0, loss_slope, signs(number - 1)))
            return jnp.concatenate([slopes[site] for site in sorted(slopes)], axis=-1)

        products = jax.lax.map(product, jnp.arange(1 + random_vectors))
        loss = jnp.mean((eps - noise) ** 2, axis=tuple(range(1, eps.ndim)))
        return loss, products[0], products[1:] / np.sqrt(pixels)

    outs = IMAGES, IMAGES, PartitionSpec(None, "images")
    run = devices.map_over_images(local, mesh, (ALL, ALL, ALL, BATCH), outs)
    return run(denoiser, point, vector_key, batch)


@dataclasses.dataclass(frozen=True)
class Expansion:
    """How the loss is expanded in the gates.

    Attributes:
      order: `first`, or `gauss_newton` for both parts.
      at: the point of expansion, `identity` or `ablated`.
      random_vectors: their number, at least 1; the relative error of a curvature is about sqrt(2 /
        (random_vectors x images)).

    Raises:
      ConfigError: an unknown order or point, or random_vectors below 1.
    """

    order: str = "gauss_newton"
    at: str = "identity"
    random_vectors: int = 4

    def __post_init__(self):
        if self.order not in ("first", "gauss_newton") or self.at not in ("identity", "ablated"):
            raise ConfigError(
                f"order={self.order!r}, at={self.at!r}: choose first or gauss_newton, identity or ablated"
            )
        if self.random_vectors < 1:
            raise ConfigError(f"random_vectors={self.random_vectors} must be at least 1; 4 are usual")


def gate_scores(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    chosen: Sequence[Component] | None = None,
    ablation: str = "zero",
    replacements: PyTree = None,
    expansion: Expansion | None = None,
    block: int = 8,
    folder: Path | None = None,
) -> xr.Dataset:
    """Predicted loss increase of ablating each component, image by image.

    With L the loss in one component's gate, g its gradient and C = |d eps / d gate|^2 / pixels (half the
    Gauss-Newton curvature), at `identity` the score is L(0) - L(1) = C - g. At `ablated` the point is the
    network with all of `chosen` ablated, where redundant components don't hide each other: the score is
    L(without all) - L(with this one alone) = -C - g.

    Args:
      eval_set: images in [-1, 1], timesteps and noise, as in `ablation.ablation_sweep`.
      chosen: components, overlapping or not, such as single channels (`unet.components(config, groups)`).
      ablation: `zero`, or another one with `replacements`, site -> `(timesteps, *site)`.
      expansion: its order, point and random vectors; None: `Expansion()`.
      block: images in one program.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk.

    Returns:
      Dataset with `score`, its parts `first` (-g) and `second` (+-C; 0 where the order is `first`), in units
      of the denoising loss, dims `component, t, image`, and `clean_loss` at the point, dims `t, image`.

    Raises:
      ConfigError: an ablation without its replacements.
    """
    expansion = expansion or Expansion()
    curved, at_identity = expansion.order == "gauss_newton", expansion.at == "identity"
    chosen = chosen_components(denoiser, chosen)
    timesteps, count = eval_set.timesteps, eval_set.count
    membership = _membership(denoiser.identity, chosen)
    passes = _Passes.of(denoiser, eval_set, expansion, block)

    def compute(t_index: int, image_rows: Int[np.ndarray, " block"]) -> dict[str, np.ndarray]:
        values = None if ablation == "zero" else replacements_at(replacements or {}, t_index)
        point = _point(denoiser, chosen, ablation, values, at_identity)
        losses, *derivatives = passes.run(point, eval_set.batch(t_index, image_rows))
        gradient, products = (np.asarray(derivative) @ membership for derivative in derivatives)
        second = (products**2).mean(0).T if curved else np.zeros_like(gradient.T)
        second = -second if curved and not at_identity else second
        return {"clean_loss": np.asarray(losses), "second": second, "first": -gradient.T}

    path = None
    if folder is not None:
        values = None if ablation == "zero" else digests.digest_arrays(replacements)
        decisive = {"gate_scores": component_keys(denoiser, chosen), "replacements": values}
        decisive |= dataclasses.asdict(expansion) | {"ablation": ablation, "block": passes.block}
        path = store(folder, result_key(denoiser, eval_set, **decisive))
    dims, sizes = ("component", *T_IMAGE), {"component": len(chosen), "t": len(timesteps), "image": count}
    empty = pieces.unfilled({"clean_loss": T_IMAGE, "second": dims, "first": dims}, sizes)
    parts = in_blocks(empty, compute, passes.block, path, f"scoring components of {denoiser.name}")
    return xr.Dataset(
        {
            "score": (dims, parts["first"] + parts["second"]),
            "first": (dims, parts["first"]),
            "second": (dims, parts["second"]),
            "clean_loss": (T_IMAGE, parts["clean_loss"]),
        },
        coords=component_coords(denoiser, chosen, timesteps, count),
        attrs={**provenance(denoiser), "ablation": ablation, **dataclasses.asdict(expansion)},
    )


def prepare(
    denoiser: Examinable, count: int, timesteps: int, expansion: Expansion | None = None, block: int = 8
) -> None:
    """Compiles the programs of `gate_scores` for `count` images and `timesteps` timesteps without running
    them, in a thread while images are still being made. For zero ablation without conditions."""
    expansion = expansion or Expansion()
    images = np.zeros((count, *denoiser.image_shape), np.float32)
    eval_set = EvalSet(images, np.zeros(timesteps, np.int32), jax.random.key(0))
    passes = _Passes.of(denoiser, eval_set, expansion, block)
    chosen = tuple(denoiser.components())
    point = _point(denoiser, chosen, "zero", None, expansion.at == "identity")
    passes.compile(point, eval_set.batch(0, next(batches(count, passes.block)).indices))


def _point(
    denoiser: Examinable, chosen: Sequence[Component], ablation: str, values: PyTree, at_identity: bool
) -> Intervention:
    """The intervention at which the loss is expanded. At the identity only its replacements matter."""
    point = ablate(denoiser.identity, chosen, ablation, values)
    return dataclasses.replace(point, gate=denoiser.identity.gate) if at_identity else point


@dataclasses.dataclass(frozen=True, eq=False)
class _Passes:
    """One program over all timesteps and batches of images.

    Attributes:
      program: `_slopes`, compiled.
      denoiser, random_vectors, mesh: its arguments that are the same in every pass.
      vector_key: of the random vectors.
      block: images in one pass.
    """

    program: Any
    denoiser: Examinable
    random_vectors: int
    mesh: Mesh
    vector_key: PRNGKey
    block: int

    @classmethod
    def of(cls, denoiser: Examinable, eval_set: EvalSet, expansion: Expansion, block: int) -> "_Passes":
        block = memory.images_at_once(block, footprint.gradient_bytes(denoiser.network))
        mesh = devices.over(block)
        calls = len(eval_set.timesteps) * math.ceil(eval_set.count / block)
        random_vectors = expansion.random_vectors if expansion.order == "gauss_newton" else 0
        program = _program(calls <= MAX_QUICK_CALLS and not jax.config.read("jax_disable_most_optimizations"))
        placed = devices.everywhere(mesh, denoiser)
        vector_key = keys.stream(eval_set.key, "probes")  # an old name: with another, scores would change
        return cls(program, placed, random_vectors, mesh, vector_key, block)

    def run(self, point: Intervention, batch: EvalBatch) -> Any:
        return self.program(self.denoiser, self.random_vectors, self.mesh, point, batch, self.vector_key)

    def compile(self, point: Intervention, batch: EvalBatch) -> None:
        self.program.lower(
            self.denoiser, self.random_vectors, self.mesh, point, batch, self.vector_key
        ).compile()


def _membership(identity: Intervention, chosen: Sequence[Component]) -> np.ndarray:
    """`(units of all sites, components)`: 1 where a unit belongs to a component."""
    sites = sorted(identity.gate)
    widths = [identity.gate[site].shape[-1] for site in sites]
    first = dict(zip(sites, np.cumsum([0, *widths[:-1]]), strict=True))
    member = np.zeros((sum(widths), len(chosen)), np.float32)
    for column, component in enumerate(chosen):
        start, stop = component.index
        member[first[component.site] + start : first[component.site] + stop, column] = 1
    return member
