"""Blocks of images shared out over the devices of this process, and how exactly these multiply.

Each device works on images of its own; at most a sum passes between them. So numbers move with the devices by
float32 rounding only.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mechdiff.core.types import PyTree

ALL, IMAGES = PartitionSpec(), PartitionSpec("images")  # on every device, or shared out along the first axis


def precision() -> str:
    """Of products of float32 matrices: in full, unless JAX_DEFAULT_MATMUL_PRECISION or its setting in
    `jax.config` says otherwise. JAX's own default drops bits on accelerators, TPUs all but 8: too many
    for differences of a part in a thousand. It is part of what names a sweep's store."""
    return jax.config.jax_default_matmul_precision or "float32"


def over(images: int) -> Mesh:
    """As many devices of this process as share `images` evenly, along the axis `images`."""
    devices = jax.local_devices()
    count = max(count for count in range(1, len(devices) + 1) if images % count == 0)
    return Mesh(np.array(devices[:count]), ("images",))


def everywhere(mesh: Mesh, tree: PyTree) -> PyTree:
    """`tree` on every device of a mesh, so that calls need not copy it again."""
    return jax.device_put(tree, NamedSharding(mesh, ALL))


def shared(mesh: Mesh, images: PyTree) -> PyTree:
    """Arrays laid out so that every device holds its part of their first axis."""
    return jax.device_put(images, NamedSharding(mesh, IMAGES))
