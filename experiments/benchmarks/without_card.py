"""What one pass of an ablation sweep would be on a card that is not here: the card's compiler needs none.

`python -m experiments.benchmarks.without_card --preset=paper --images=16 --set=sweep.precision=tf32`

Compiles the pass for an NVIDIA H200 (JAX's CUDA plugin is installed by `pip install "jax[cuda12]"`; no driver
is needed), or with `--card=v5e` for a TPU (`pip install "jax[tpu]"`), and prints how long that takes, the
memory that XLA counts beside the forecast of the engine, and the kernels by kind with the bytes that they
read and write. Nothing runs, so no kernel is chosen by trying: what a card adds to the time of compiling, and
how fast its kernels are, is not seen here.
"""

import dataclasses
import importlib.util
import os
import time

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it would ask a driver
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a TPU's library would look for one
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from experiments import _launch
from experiments.benchmarks import _kernels
from mechdiff.core import devices
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.build import leave_one_out
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, identity_intervention, init_shapes
from mechdiff.storage import files
from mechdiff.sweeps.execution import engine, footprint, layout, memory, passes

CARD = flags.DEFINE_enum("card", "h200", ("h200", "v5e"), "The card: NVIDIA H200, or TPU v5e.")
IMAGES = flags.DEFINE_integer("images", 16, "Images in the pass.", lower_bound=1)
TEXT = flags.DEFINE_boolean("text", False, "Keep the compiled program in WORKDIR too.")

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048  core_count: 132
  fpus_per_core: 128  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000  clock_rate_ghz: 1.98  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Card:
    """The device that the engine plans for: its platform, bytes of memory, and who compiles for it."""

    platform: str
    memory: int
    compiler: str
    package: str

    def memory_stats(self):
        """As of an idle card."""
        return {"bytes_limit": self.memory, "bytes_in_use": 0}


CARDS = {
    "h200": Card("gpu", 150_000_000_000, "jax_plugins.xla_cuda12", "jax[cuda12]"),
    "v5e": Card("tpu", 16_900_000_000, "libtpu", "jax[tpu]"),
}


def main(config, workdir):
    card = CARDS[CARD.value]
    if not _installed(card.compiler):
        raise ConfigError(f'the compiler is not installed; install it with pip install "{card.package}"')
    jax.default_backend = lambda: card.platform  # the forms of the network that an accelerator gets
    with devices.multiplying(config.sweep.precision):
        plan, forecast, lowered = lower(config, IMAGES.value, card)
    start = time.monotonic()
    compiled = lowered.compile()
    seconds, text = time.monotonic() - start, compiled.as_text()
    counted = compiled.memory_analysis().temp_size_in_bytes
    interventions, images = plan.order.shape[1], plan.block
    print(
        f"{config.name}, {config.sweep.precision}: {interventions} interventions x {images} images in a "
        f"pass; compiled in {seconds:.1f} s; memory {counted / memory.GIB:.2f} GiB by XLA's count, "
        f"{forecast / memory.GIB:.2f} forecast"
    )
    moved = _kernels.moved(text)
    total = sum(size for _, size in moved.values())
    for kind, (count, size) in sorted(moved.items(), key=lambda item: -item[1][1])[:12]:
        print(f"{kind:44}{count:6d}{size / 1e9:10.1f} GB")
    print(f"{'all':44}{sum(count for count, _ in moved.values()):6d}{total / 1e9:10.1f} GB")
    if TEXT.value:
        files.write_atomic(workdir / "program.txt", text)


def lower(config, images, card):
    """The layout of a call of the engine, its forecast in bytes, and the program of its passes, traced."""
    unet, identity = config.unet, identity_intervention(config.unet)
    denoiser = Denoiser("benchmark", unet, make_schedule(config.diffusion), init_shapes(unet)[0], identity)
    stacked = leave_one_out(identity, components(unet))[1]
    planner = engine.Engine(denoiser, devices=(card,))
    rows, block = planner._size(stacked, images)
    chip = _topology(card).devices[0]
    plan = layout.lay_out(planner._plan(stacked, rows), images, block, [chip])
    batch = EvalBatch(
        np.zeros((images, *denoiser.image_shape), np.float32), np.arange(images), 500, None, None
    )
    common, of_images = layout.split_replacements(stacked, identity, identity)
    shared = passes.CommonInputs(np.int32(500), jax.eval_shape(jax.random.key, 0), common, None)
    inputs = passes.ImageInputs(batch.images, batch.indices, None, of_images, None)
    everywhere = NamedSharding(plan.mesh, PartitionSpec())

    def of_shape(leaf):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    arguments = (denoiser, layout.by_pass(plan, stacked, identity), layout.by_block(plan, inputs), shared)
    with jax.default_matmul_precision(devices.precision()):
        lowered = passes.run_passes.lower(
            *jax.tree.map(of_shape, arguments),
            joins=plan.joins,
            changed_skips=plan.changed_skips,
            mesh=plan.mesh,
            reduction=passes.losses,
        )
    return plan, footprint.pass_bytes(unet, plan.joins, plan.block), lowered


def _installed(module):
    parent = module.partition(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None


def _topology(card):
    if card.platform == "tpu":
        return topologies.get_topology_desc("v5e:2x2", platform="tpu")
    # JAX asks for the platform `gpu` where none is: https://github.com/jax-ml/jax/issues/23971
    from jax._src import xla_bridge

    canonical = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "gpu" else canonical(name)
    return topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")


if __name__ == "__main__":
    _launch.run(main)
