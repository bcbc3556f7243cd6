"""Made-up results of networks whose truth is known, for tests of claims."""

import dataclasses
import functools

import numpy as np
import xarray as xr

from mechdiff.study import claims
from mechdiff.study.network_results import NetworkResults

TYPES = ["res"] * 6 + ["head"] * 6
NAMES = [f"down0.block{i}.res" for i in range(6)] + [f"mid.attn0.head{i}" for i in range(6)]
IMAGES = 12


def network(data, seed, damage, entropy, levels=4, ablations=("zero", "mean"), rung=4):
    """A network whose components do `damage` (shares of the clean loss) and whose heads have `entropy`."""
    rng = np.random.default_rng([seed, len(data)])
    clean = 1 + 0.1 * rng.random((levels, IMAGES))
    noise = 1 + 0.02 * rng.standard_normal((len(ablations), 12, levels, IMAGES))
    damage = np.broadcast_to(damage, (12, levels)) if np.ndim(damage) == 2 else np.array(damage)[:, None]
    loss = clean * (1 + damage[None, :, :, None] * noise)
    axes = {"t": np.arange(levels), "log_snr": ("t", -np.arange(levels, dtype=float))}
    dims = ("ablation", "component", "t", "image")
    sweep = xr.Dataset(
        {"loss": (dims, loss), "change": (dims, loss), "clean_loss": (("t", "image"), clean)},
        coords={
            "ablation": list(ablations),
            "component": NAMES,
            "component_type": ("component", TYPES),
            **axes,
        },
    )
    entropy = np.asarray(entropy)
    entropy = entropy[:, None] if entropy.ndim == 1 else entropy  # of each head, or of each at each level
    heads = entropy[:, :, None] + 0.01 * rng.standard_normal((6, levels, IMAGES))
    values = {name: (("head", "t", "image"), heads) for name in ("entropy", "normalized_entropy")}
    tokens = ("head", np.full(6, 16))
    attention = xr.Dataset(values, coords={"head": NAMES[6:], "tokens": tokens, **axes})
    return NetworkResults(f"{data}-{seed}", data, rung, seed, sweep, attention)


def ladder(seed, shake=lambda: 1.0, costs=((0, 0.005), (2, 0.01))):
    """Networks of lower rungs, whose damage is spread less the simpler their faces."""
    return [
        network(
            "synthetic", seed, np.r_[1.0, np.full(11, cost)] * shake(), 0.2 + 0.1 * np.arange(6), rung=rung
        )
        for rung, cost in costs
    ]


def shaken(seed, by):
    """A factor near 1 for each component: anew at every call of a generator, the same of a seed."""
    return 1 + by * np.random.default_rng(seed).standard_normal(12)


def untrained_beside(item):
    """The network with an untrained one beside it, whose entropies and damage have nothing in common."""
    rng = np.random.default_rng([7, item.seed])
    other = network(item.data, 100 + item.seed, 0.1 * rng.random(12), rng.random(6), item.sweep.sizes["t"])
    return dataclasses.replace(item, control=other.sweep, control_attention=other.attention)


def complex_study(costs, loss=1.0):
    """Networks whose circuits are wider for CelebA, and whose rungs 0, 2 and 4 spread damage by `costs`."""
    made = []
    for seed in range(4):
        shake = functools.partial(shaken, seed, 0.02)
        natural = network("celeba", seed, np.r_[1.0, np.full(11, 0.5)] * shake(), np.linspace(0, 1, 6))
        sweep = natural.sweep.assign({name: natural.sweep[name] * loss for name in ("loss", "clean_loss")})
        made += [
            dataclasses.replace(natural, sweep=sweep),
            *ladder(seed, shake, zip((0, 2, 4), costs, strict=True)),
        ]
    return made


def answers_of(networks):
    return {claim.id: claim for claim in claims.evaluate(networks)}
