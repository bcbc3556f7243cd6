"""Blocks of images shared out over the devices of this process, and how exactly these multiply.

Each device works on images of its own; at most a sum passes between them. So numbers move with the devices by
float32 rounding only.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mechdiff.core import containers
from mechdiff.core.config import Precision
from mechdiff.core.errors import MechdiffError
from mechdiff.core.types import PyTree

ALL, IMAGES = PartitionSpec(), PartitionSpec("images")  # on every device, or shared out along the first axis

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # how XLA's errors begin
THREE_TF32, ROUNDED = "TF32_TF32_F32_X3", "BF16_BF16_F32"  # JAX's names of products of split or cut inputs
# What JAX calls a precision, by kind of device; where one is not listed, products are in float32 anyway. On
# CPUs only convolutions are rounded to bfloat16, for rehearsals: nothing gets faster.
NAMES = {
    "gpu": {"3xtf32": THREE_TF32, "tf32": "tensorfloat32", "bfloat16": ROUNDED},
    "tpu": {"tf32": "tensorfloat32", "bfloat16": "bfloat16"},
    "cpu": {"bfloat16": ROUNDED},
}


def precision() -> str:
    """Of products of float32 matrices: in full, unless JAX_DEFAULT_MATMUL_PRECISION or its setting in
    `jax.config` says otherwise. JAX's own default drops bits on accelerators, TPUs all but 8: too many
    for differences of a part in a thousand. It is part of what names a sweep's store."""
    return jax.config.jax_default_matmul_precision or "float32"


def use_all_cores(share: int = 0) -> bool:
    """Makes every CPU core that this process may use a device of its own, over which sweeps share out their
    images; must come before any device is used. On two cores a sweep took 0.55 of the time of one device with
    two threads. A number that was chosen already, by JAX_NUM_CPU_DEVICES or XLA_FLAGS, stands, and so does
    one device for each of many processes; accelerators are not touched.

    Args:
      share: what the devices must divide, if not 0: fewer of them then, where need be.
    Returns:
      Whether it is so: False where JAX had begun with fewer.

    Example:
      >>> use_all_cores() in (True, False)  # False: JAX was at work
      True
    """
    chosen = jax.config.jax_num_cpu_devices != -1 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.distributed.is_initialized():
        return True
    count = max(n for n in range(1, containers.usable_cores() + 1) if share % n == 0)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX is at work
        return jax.default_backend() != "cpu" or jax.local_device_count() >= count
    return True


def acts(setting: Precision) -> bool:
    """Whether a precision changes any number on this kind of device."""
    return setting in NAMES.get(jax.default_backend(), {})


def explanation(setting: Precision) -> str | None:
    """One line for a precision that does not do here what its name says; None for all others."""
    platform = jax.default_backend()
    if setting == "float32" or platform == "gpu":
        return None
    if not acts(setting):
        return f"sweep.precision={setting} changes nothing on a {platform.upper()}: products are in float32"
    if platform == "cpu":
        return "sweep.precision=bfloat16 on a CPU rounds what enters convolutions, and makes nothing faster"
    return None


def warn_of(setting: Precision) -> None:
    """Logs `explanation`, if there is any."""
    if line := explanation(setting):
        logging.warning("%s", line)


@contextlib.contextmanager
def multiplying(setting: Precision) -> Iterator[None]:
    """Products of this precision inside of the block; `float32` leaves what is set outside (`precision`)."""
    name = NAMES.get(jax.default_backend(), {}).get(setting)
    with jax.default_matmul_precision(name) if name else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def enough_memory(way_out: str) -> Iterator[None]:
    """Says in one line what to do where a device's memory is too small for what is run in the block.

    Raises:
      MechdiffError: it is.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        device = jax.local_devices()[0]
        raise MechdiffError(
            f"the memory of a device ({device.device_kind}) is too small; {way_out}"
        ) from error


@functools.cache
def jitted(function: Callable, static: tuple[str, ...], quickly: bool = False) -> Any:
    """`jax.jit` of a function, with these arguments static. On CPUs `quickly` spends less on compiling and
    more on running: for programs that are called a few times (XLA's backend level 1; see BUILD_NOTES.md)."""
    wanted = quickly and jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 1} if wanted else None
    return jax.jit(function, static_argnames=static, compiler_options=options)


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


def map_over_images(
    function: Callable, mesh: Mesh, specs: tuple[PyTree, ...], outs: PyTree = IMAGES
) -> Callable[..., Any]:
    """`function` on every device of a mesh, each on its share of the images.

    Args:
      function: of arrays, in which an image's results depend on that image alone (or are summed by
        `jax.lax.psum` along `images`).
      specs, outs: of its arguments and of its results, `ALL` or `IMAGES` or trees of them.
    """
    # `check_vma` would ask for a mark on every value that is alike on all devices.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)
