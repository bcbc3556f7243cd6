"""The layout of a call: which intervention is in which pass, and which image in which block.

It is decided on the host, once for each call. Passes and blocks are spread over a mesh (passes x images) of
devices. Rows left over hold repeats, which `by_intervention` and `by_image` drop.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from mechdiff.core.types import AnyArray, PyTree
from mechdiff.interventions.record import Intervention
from mechdiff.sweeps.execution.shared_prefix import PassPlan

REPLACEMENTS = ("replacement", "pattern_replacement")  # of an intervention: what may differ between images
PATTERN_RANK = 3  # heads, queries, keys


class Layout(NamedTuple):
    """Interventions and images over passes, blocks and devices.

    Attributes:
      mesh: the devices, passes x images.
      joins, changed_skips: of `PassPlan`.
      order: index of the intervention of each row of each pass.
      image_order: index of the image in each row of each block.
    """

    mesh: Mesh
    joins: tuple[int, ...]
    changed_skips: tuple[int, ...]
    order: Int[np.ndarray, "passes width"]
    image_order: Int[np.ndarray, "blocks block"]

    @property
    def block(self) -> int:
        """Images in a block."""
        return self.image_order.shape[1]

    @property
    def interventions(self) -> int:
        """Number of interventions, without repeats."""
        return int(self.order.max()) + 1

    @property
    def images(self) -> int:
        """Number of images, without repeats."""
        return int(self.image_order.max()) + 1


def lay_out(plan: PassPlan, images: int, block: int, devices: Sequence[Any]) -> Layout:
    """The layout of the interventions of a plan and of `images` in blocks of `block`."""
    blocks = math.ceil(images / block)
    mesh = _mesh(devices, blocks)
    image_order = np.arange(blocks * block).reshape(blocks, block)
    image_order = np.minimum(_padded(image_order, mesh.shape["images"]), images - 1)
    order = _padded(plan.order, mesh.shape["passes"])
    return Layout(mesh, plan.joins, plan.changed_skips, order, image_order)


def _mesh(devices: Sequence[Any], blocks: int) -> Mesh:
    """Devices spread over blocks of images as far as there are enough, then over passes."""
    count = len(devices)
    along_images = max(d for d in range(1, count + 1) if count % d == 0 and d <= blocks)
    return Mesh(np.array(devices).reshape(count // along_images, along_images), ("passes", "images"))


def _padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    """The last row repeated until the number of rows is a multiple of `multiple`."""
    return np.pad(rows, ((0, -len(rows) % multiple), (0, 0)), mode="edge")


def by_pass(layout: Layout, stacked: Intervention, identity: Intervention) -> Intervention:
    """A stack without its replacements, leaves `(passes, width, ...)`; shared leaves are repeated."""

    def dealt(values: AnyArray, shared_rank: int) -> np.ndarray:
        values = np.asarray(values)
        if values.ndim == shared_rank:
            values = np.broadcast_to(values, (layout.interventions, *values.shape))
        return values[layout.order]

    multipliers = {
        name: {site: dealt(values, 1) for site, values in getattr(stacked, name).items()}
        for name in ("gate", "temperature", "pattern")
    }
    add = {site: dealt(values, np.ndim(identity.replacement[site])) for site, values in stacked.add.items()}
    left_out = dict.fromkeys(REPLACEMENTS)  # None each: `split_replacements` has them
    return dataclasses.replace(stacked, **multipliers, add=add, window=dealt(stacked.window, 1), **left_out)


def split_replacements(
    stacked: Intervention, identity: Intervention, placed: Intervention
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """The replacements that all images share, and those that differ between images: field -> site -> leaf.

    Args:
      placed: `identity` on the devices; its replacements are taken where `stacked` has those of `identity`,
        since sending a small network's takes as long as running it.
    """
    common: dict[str, PyTree] = {name: {} for name in REPLACEMENTS}
    per_image: dict[str, PyTree] = {name: {} for name in REPLACEMENTS}
    for name in REPLACEMENTS:
        for site, leaf in getattr(stacked, name).items():
            rank = np.ndim(identity.replacement[site]) if name == "replacement" else PATTERN_RANK
            kept_in = per_image if np.ndim(leaf) > rank else common
            unchanged = leaf is getattr(identity, name).get(site)
            kept_in[name][site] = getattr(placed, name)[site] if unchanged else leaf
    return common, per_image


def by_block(layout: Layout, tree: PyTree) -> PyTree:
    """Leaves `(images, ...)` as `(blocks, block, ...)`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[layout.image_order], tree)


def by_intervention(layout: Layout, tree: PyTree) -> PyTree:
    """Leaves `(passes, width, blocks, block, ...)` as `(interventions, images, ...)`."""

    def scattered(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(layout.order.size, -1, *values.shape[4:])
        result = np.empty((layout.interventions, *flat.shape[1:]), flat.dtype)
        result[layout.order.ravel()] = flat
        return result[:, : layout.images]

    return jax.tree.map(scattered, tree)


def by_image(layout: Layout, tree: PyTree) -> PyTree:
    """Leaves `(passes, blocks, block, ...)`, the same in every pass, as `(images, ...)`."""
    return jax.tree.map(lambda leaf: leaf[0].reshape(-1, *leaf.shape[3:])[: layout.images], tree)
