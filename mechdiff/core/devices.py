"""Sharding of images over the devices of this process, and the precision of matrix products.

Each device computes its own images; at most a sum is exchanged. So results depend on the number of devices
only by float32 rounding.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mechdiff.core import containers
from mechdiff.core.config import Precision
from mechdiff.core.errors import ConfigError, MechdiffError, unknown
from mechdiff.core.types import PyTree

ALL, IMAGES = PartitionSpec(), PartitionSpec("images")  # replicated, or sharded along the first axis

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # how XLA's errors begin
THREE_TF32, ROUNDED = "TF32_TF32_F32_X3", "BF16_BF16_F32"  # JAX's names: inputs split in three, or rounded
# JAX's name of each precision, by platform; products of a precision that is not listed stay in float32. On
# CPUs `bfloat16` rounds what enters and leaves convolutions: an accelerator's numerics, but not its speed.
NAMES = {
    "gpu": {"3xtf32": THREE_TF32, "tf32": "tensorfloat32", "bfloat16": ROUNDED},
    "tpu": {"tf32": "tensorfloat32", "bfloat16": "bfloat16"},
    "cpu": {"bfloat16": ROUNDED},
}


def precision() -> str:
    """Precision of float32 matrix products: `float32` (full) unless JAX_DEFAULT_MATMUL_PRECISION is set.

    JAX's own default uses fewer bits on accelerators (bfloat16 passes on TPUs, TF32 on GPUs), too few for
    relative differences of 1e-3. The precision is part of the digest that names a sweep's store.
    """
    return jax.config.jax_default_matmul_precision or "float32"


def use_all_cores(share: int = 0) -> bool:
    """Makes every CPU core that this process may use a JAX device, so that sweeps shard images over them.

    It must be called before any device is used. On two cores a sweep took 0.55 of the time of one device with
    two threads. A number chosen already by JAX_NUM_CPU_DEVICES or XLA_FLAGS is kept, as is one device for
    each of several processes; accelerators are not affected.

    Args:
      share: if not 0, the number of devices is the largest that divides it.
    Returns:
      False if JAX was already running on the CPU with fewer devices; else True.

    Example:
      >>> use_all_cores() in (True, False)  # False: JAX was running already
      True
    """
    chosen = jax.config.jax_num_cpu_devices != -1 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.distributed.is_initialized():
        return True
    count = max(n for n in range(1, containers.usable_cores() + 1) if share % n == 0)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX is running already
        return jax.default_backend() != "cpu" or jax.local_device_count() >= count
    return True


def acts(setting: Precision) -> bool:
    """Whether a precision changes any result on this platform."""
    return setting in NAMES.get(jax.default_backend(), {})


def explanation(setting: Precision) -> str | None:
    """One line if a precision does something other than its name says on this platform; else None."""
    platform = jax.default_backend()
    if setting == "float32" or platform == "gpu":
        return None
    if not acts(setting):
        return f"sweep.precision={setting} changes nothing on a {platform.upper()}: products are in float32"
    if platform == "cpu":
        return (
            "sweep.precision=bfloat16 on a CPU rounds what enters and leaves convolutions, and makes nothing "
            "faster"
        )
    return None


def warn_of(setting: Precision) -> None:
    """Logs `explanation` as a warning, if there is one.

    Raises:
      ConfigError: not the name of a precision.
    """
    if setting not in get_args(Precision):
        raise ConfigError(unknown("precision", setting, get_args(Precision)))
    if line := explanation(setting):
        logging.warning("%s", line)


@contextlib.contextmanager
def multiplying(setting: Precision) -> Iterator[None]:
    """Gives matrix products in the block this precision; `float32` keeps the one set outside
    (`precision`)."""
    name = NAMES.get(jax.default_backend(), {}).get(setting)
    with jax.default_matmul_precision(name) if name else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def enough_memory(way_out: str) -> Iterator[None]:
    """Turns an out-of-memory error of the block into one line; that of a device ends with `way_out`.

    Raises:
      MechdiffError: a device's memory, or this machine's, was too small.
    """
    try:
        yield
    except MemoryError as error:  # NumPy's says how much was asked for, Python's own nothing
        raise MechdiffError(
            f"the memory of this machine is too small: {error or 'no more is left'}; take fewer images, "
            "samples, pairs or timesteps"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        device = jax.local_devices()[0]
        raise MechdiffError(
            f"the memory of a device ({device.device_kind}) is too small; {way_out}"
        ) from error


# LLVM's optimizations left out, and kernels emitted the older way, which compiles in two thirds of the time
# (JAX 0.12 has it no longer). Products, sums and elementwise operations by XLA's library of kernels
# (YNNPACK), optimized at any level: such programs take 0.76 to 0.87 of the time with it, those compiled in
# full 1.1 to 1.2 times as long (one core, experiments/benchmarks/README.md).
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "ELTWISE", "REDUCE")
    ),
}


@functools.cache
def jitted(function: Callable, static: tuple[str, ...], quickly: bool = False) -> Any:
    """`jax.jit` of a function, with these arguments static. On CPUs `quickly` spends less on compiling and
    more on running: for programs that are called a few times (see `QUICKLY` and BUILD_NOTES.md)."""
    if not quickly or jax.default_backend() != "cpu":
        return jax.jit(function, static_argnames=static)
    options = {name: value for name, value in QUICKLY.items() if _has_option(name, value)}
    return jax.jit(function, static_argnames=static, compiler_options=options)


@functools.cache
def _has_option(option: str, value: Any) -> bool:
    """Whether this version of XLA has a compiler option: they come and go."""
    try:
        jax.jit(lambda x: -x, compiler_options={option: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        return False
    return True


def over(images: int) -> Mesh:
    """A mesh with the axis `images`: the largest number of this process's devices that divides `images`."""
    devices = jax.local_devices()
    count = max(count for count in range(1, len(devices) + 1) if images % count == 0)
    return Mesh(np.array(devices[:count]), ("images",))


def everywhere(mesh: Mesh, tree: PyTree) -> PyTree:
    """`tree` replicated on every device of a mesh, so that calls need not copy it again."""
    return jax.device_put(tree, NamedSharding(mesh, ALL))


def shared(mesh: Mesh, images: PyTree) -> PyTree:
    """Arrays sharded along their first axis: every device holds its part."""
    return jax.device_put(images, NamedSharding(mesh, IMAGES))


def map_over_images(
    function: Callable, mesh: Mesh, specs: tuple[PyTree, ...], outs: PyTree = IMAGES
) -> Callable[..., Any]:
    """`function` sharded by `jax.shard_map`: every device of a mesh calls it on its share of the images.

    Args:
      function: takes arrays; an image's results depend on that image alone, or are summed by `jax.lax.psum`
        along `images`.
      specs, outs: partitions of its arguments and of its results: `ALL`, `IMAGES` or trees of them.
    """
    # `check_vma` would ask for a mark on every value that is the same on all devices.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)
