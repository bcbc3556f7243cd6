"""What joining where an intervention first acts saves on functions with named values.

`python -m experiments.benchmarks.traced --batch=8 --repeats=5`, under `taskset -c 0` for one core. For this
package's UNet by its names, the NNX UNet and the Linen DiT of the examples, with fresh parameters: a
leave-one-out sweep over all components at one timestep, every pass whole and with shared prefixes, in turn;
operations as XLA counts them, processor seconds (the least of the repeats), largest difference of a predicted
noise. On a busy machine processor time still moves with what shares the caches: only ratios within one run
are worth comparing.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _launch
from experiments.examples import linen_dit, nnx_unet, own_unet
from mechdiff.core.presets import preset
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.build import leave_one_out
from mechdiff.models.unet import init_unet
from mechdiff.sweeps.execution import shared_prefix

BATCH = flags.DEFINE_integer("batch", 8, "Images in a batch.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Of each arm.", lower_bound=1)


def own(name: str):
    """The UNet of a preset, by its names."""
    config = preset(name)
    params, identity = init_unet(jax.random.key(0), config.unet)
    return own_unet.wrapped(config.unet, make_schedule(config.diffusion), params, identity), None


def nnx():
    """The NNX UNet, trained for a step."""
    size = nnx_unet.SIZE
    return nnx_unet.denoiser(steps=1, draw=lambda key: jax.random.normal(key, (2, size, size, 3))), None


def dit(images: int):
    """The Linen DiT, trained for a step, and a class for each image."""
    size = linen_dit.SIZE

    def draw(key):
        return jax.random.normal(key, (5, size, size, 3)), jnp.arange(5)

    return linen_dit.denoiser(steps=1, draw=draw), jnp.arange(images) % linen_dit.RUNGS


def whole(denoiser, stacked, x, t, condition):
    """What `shared_prefix.forward` gives, each intervention by a run of the whole network."""

    def predict(gate):
        return denoiser.predict(dataclasses.replace(stacked, gate=gate), x, jnp.full(len(x), t), condition)

    nothing = {site: jnp.ones_like(leaf[:1]) for site, leaf in stacked.gate.items()}
    eps = jax.vmap(predict)(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), nothing, stacked.gate))
    return eps[0], eps[1:]


def measured(denoiser, condition, images: int, repeats: int) -> dict[str, float]:
    """Operations and processor seconds of both arms, and how far their predictions are apart."""

    def noisy(leaf):
        return leaf + 0.1 * np.random.default_rng(0).normal(size=leaf.shape).astype(leaf.dtype)

    params = jax.tree.map(noisy, denoiser.params)  # no gate that training opens stays shut
    denoiser = dataclasses.replace(denoiser, params=params)
    names, stacked = leave_one_out(denoiser.identity, denoiser.components())
    plan = shared_prefix.plan_passes(denoiser.network, stacked, len(names))
    gate = {site: leaf[plan.order[0]] for site, leaf in stacked.gate.items()}
    stacked = dataclasses.replace(stacked, gate=gate)
    x, t = jax.random.normal(jax.random.key(1), (images, *denoiser.image_shape)), jnp.int32(300)
    arms = {
        "whole": lambda denoiser, x: whole(denoiser, stacked, x, t, condition),
        "shared": lambda denoiser, x: shared_prefix.forward(denoiser, plan.joins, stacked, x, t, condition),
    }
    compiled = {name: jax.jit(run).lower(denoiser, x).compile() for name, run in arms.items()}
    seconds = {name: [] for name in arms}
    outputs = {}
    for _ in range(repeats):
        for name, run in compiled.items():
            start = time.process_time()
            outputs[name] = jax.block_until_ready(run(denoiser, x))
            seconds[name].append(time.process_time() - start)
    differences = [jnp.abs(a - b).max() for a, b in zip(outputs["whole"], outputs["shared"], strict=True)]
    return {
        "components": len(names),
        **{f"operations, {name}": run.cost_analysis()["flops"] for name, run in compiled.items()},
        **{f"seconds, {name}": min(values) for name, values in seconds.items()},
        "difference": float(max(differences)),
    }


def main(_, workdir):
    images = BATCH.value
    networks = {
        "own UNet, tiny": lambda: own("tiny"),
        "NNX UNet": nnx,
        "Linen DiT": lambda: dit(images),
    }
    print(f"{'network':16s}{'parts':>6s}{'Mop whole':>11s}{'shared':>9s}{'ratio':>7s}", end="")
    print(f"{'s whole':>9s}{'shared':>8s}{'ratio':>7s}{'difference':>12s}")
    results = {}
    for name, make in networks.items():
        row = results[name] = measured(*make(), images, REPEATS.value)
        whole, shared = (row[f"operations, {arm}"] / 1e6 for arm in ("whole", "shared"))
        before, after = (row[f"seconds, {arm}"] for arm in ("whole", "shared"))
        print(f"{name:16s}{row['components']:6d}{whole:11.1f}{shared:9.1f}{shared / whole:7.2f}", end="")
        print(f"{before:9.3f}{after:8.3f}{after / before:7.2f}{row['difference']:12.1e}", flush=True)
    return results


if __name__ == "__main__":
    _launch.run(main)
