"""Arrays to test layers and blocks with, and attention in float64."""

import jax
import numpy as np


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def double(x):
    return np.asarray(x, np.float64)


def applied(module, params, x):
    """Output of a module with these parameters, compiled as a whole."""
    return np.asarray(jax.jit(module.apply)({"params": params}, x))


def softmax_attention(q, k, v):
    """float64, `(batch, heads, tokens, depth)`."""
    logits = np.einsum("bhqd,bhkd->bhqk", *(double(q), double(k)))
    pattern = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", pattern / pattern.sum(-1, keepdims=True), double(v))
