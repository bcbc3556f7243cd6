"""Circuits of networks that are made up: their losses are a rule of who is there."""

import dataclasses

import jax
import numpy as np

from mechdiff.circuits.faithfulness import CircuitEvaluator

IMAGES = 12


@dataclasses.dataclass(frozen=True)
class MadeUp(CircuitEvaluator):
    """Trials whose loss is 1, less what `rules(has)` says, alike at both timesteps or of each.

    `has` tells who is there.
    """

    rules: object = None

    def _run(self, members):
        name = {component: i for i, component in enumerate(self.names)}
        rng = np.random.default_rng(0)
        luck = 1 + 0.2 * rng.normal(size=self.eval_set.count)  # images differ, alike for all circuits
        levels = np.array([1.0, 0.5])[: len(self.eval_set.timesteps)]
        gain = np.array([levels * self.rules(lambda who: row[name[who]]) for row in members])  # noqa: B023
        return (1 - gain[:, :, None] * luck).astype(np.float32)


A, B, C, D = "down0.attn0.head0", "mid.attn0.head1", "up0.block1.skip", "mid.block0.res"
KEY = jax.random.key(2)


def additive(has):
    return 0.5 * has(A) + 0.25 * has(C) + 0.02 * has(D)


def redundant(has):
    return 0.5 * (has(A) or has(B)) + 0.2 * has(C)
