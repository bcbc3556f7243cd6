"""Blocks of the UNet, with an attribute for every option of DDPM checkpoints.

Attention runs on explicit (batch x head, tokens, width) matrices (`attention`), as measured fastest on a CPU.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mechdiff.core.types import AnyArray, Features
from mechdiff.interventions.gates import Gate, NamedPattern, Pattern, Temperature, naming
from mechdiff.models.attention import attend, attention_pattern
from mechdiff.models.attention_stats import attention_statistics
from mechdiff.models.convolution import alone, double
from mechdiff.models.layers import ACTIVATIONS, Conv, Dense, GroupNorm, Times, conv3, silu, time_features
from mechdiff.models.precomputed_skips import PrecomputedSkip

ATTENTION = "attention"  # collection that attention statistics are sown into
PATTERNS = "patterns"  # collection that whole patterns are sown into
_zeros = nn.initializers.zeros_init()


class TimeMLP(nn.Module):
    """Timestep features -> embedding `(batch, width)`."""

    features: int
    width: int
    flip_sin_to_cos: bool
    shift: float
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Times) -> Float[Array, "batch width"]:
        h = time_features(t, self.features, self.flip_sin_to_cos, self.shift, self.scale)
        h = h.astype(self.dtype)
        h = Dense(self.width, dtype=self.dtype, name="dense1")(h)
        return Dense(self.width, dtype=self.dtype, name="dense2")(silu(h))


class Embeddings(NamedTuple):
    """Embeddings that every residual block is given, per row; `label` is None without classes."""

    time: Float[Array, "batch d"]
    label: Float[Array, "batch d"] | None = None


class LabelTable(nn.Module):
    """Label -> embedding `(batch, width)`; a label outside [0, count) gives NaN, not another class."""

    count: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, label: Int[AnyArray, " batch"]) -> Float[Array, "batch width"]:
        embed = nn.Embed(
            self.count,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="table",
        )
        outside = (label < 0) | (label >= self.count)  # a negative index would count from the end
        return jnp.where(outside[:, None], jnp.nan, embed(jnp.where(outside, 0, label)))


def resampled(x: Features, direction: int) -> Features:
    """`x` at half (-1: mean of 2x2), the same (0) or twice (1: nearest neighbor) the resolution."""
    if direction < 0:
        return nn.avg_pool(x, (2, 2), (2, 2))
    return double(x) if direction > 0 else x


def scaled_down(x: Features, factor: float) -> Features:
    """`x / factor`; `x` itself where that is 1."""
    return x if factor == 1 else x / factor


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, time injection, norm, SiLU, conv; added to the (projected) input. `activation` names
    another function than SiLU (`layers.ACTIVATIONS`); the sum is divided by `output_scale`.

    Sites: `time` (the injection), `res` (the branch before it is added), `skip` if the block takes a skip
    tensor from the encoder, and `class` if there are classes: the class's share of the embedding that is
    projected and injected (`time` gates the whole injection). With `resample` -1 or 1 the block halves or
    doubles the resolution of branch and input (Dhariwal & Nichol 2021), without parameters for it.

    It may be given a precomputed skip (`precomputed_skips`) and the parameters of all else. `first_groups`
    are then the groups that the first normalization is left with; 0: `groups`.
    """

    width: int
    groups: int
    eps: float
    scale_shift: bool = False
    dropout: float = 0.0
    resample: int = 0
    first_groups: int = 0
    activation: str = "silu"
    output_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Features, embeddings: Embeddings, skip: Features | PrecomputedSkip | None, train: bool
    ) -> Features:
        embedded, act = embeddings.time, ACTIVATIONS[self.activation]
        if embeddings.label is not None:
            embedded = embedded + Gate(name="class")(embeddings.label)
        precomputed = skip if isinstance(skip, PrecomputedSkip) else None
        if skip is not None and precomputed is None:
            x = jnp.concatenate([x, Gate(name="skip")(skip)], axis=-1)
        h = x
        if precomputed is not None and precomputed.beside is not None:
            h = jnp.concatenate([x, precomputed.beside], axis=-1)
        h = act(GroupNorm(self.first_groups or self.groups, self.eps, name="norm1")(h))
        doubled = self.resample > 0
        h = h if doubled else resampled(h, self.resample)
        h = conv3(self.width, self.dtype, "conv1", doubled=doubled)(h)
        h = h if precomputed is None else h + precomputed.conv1
        x = resampled(x, self.resample)
        width = 2 * self.width if self.scale_shift else self.width
        injected = Dense(width, dtype=self.dtype, name="time_dense")(act(embedded))
        injected = Gate(name="time")(injected)[:, None, None, :]
        if self.scale_shift:
            factor, offset = jnp.split(injected, 2, axis=-1)
            h = GroupNorm(self.groups, self.eps, name="norm2")(h) * (1 + factor) + offset
        else:
            h = GroupNorm(self.groups, self.eps, name="norm2")(alone(h) + injected)
        h = nn.Dropout(self.dropout, deterministic=not train)(act(h))
        h = conv3(self.width, self.dtype, "conv2", kernel_init=_zeros)(h)
        if x.shape[-1] != self.width or precomputed is not None:
            x = Conv(self.width, window=1, padding=(0, 0), dtype=self.dtype, name="shortcut")(x)
        x = x if precomputed is None else x + precomputed.shortcut
        return scaled_down(x + Gate(name="res")(h), self.output_scale)


class Attention(nn.Module):
    """Multi-head self-attention over positions, added to its input.

    Sites: `head` (each head's output before the output projection) and `pattern` (a temperature per head, and
    the pattern that its own is mixed with). The head's own pattern, after temperature and before mixing, and
    its statistics are sown if their collections are mutable; else no pattern is stored.

    Without `groups` the input is not normalized. `depth` is the width of a head; 0: the heads divide the
    channels among them. Else they may be narrower together (of diffusers, where it does not divide them).
    What leaves is divided by `output_scale`.
    """

    heads: int
    groups: int
    eps: float
    depth: int = 0
    output_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        batch, height, width, channels = x.shape
        tokens, depth = height * width, self.depth or channels // self.heads
        h = GroupNorm(self.groups, self.eps, name="norm")(x) if self.groups else x
        h = h.reshape(batch, tokens, channels)
        dense = functools.partial(Dense, self.heads * depth, dtype=self.dtype)
        q, k, v = (self._heads(dense(name=name)(h)) for name in "qkv")
        q = Temperature(name="pattern")(q * depth**-0.5)  # queries are fewer numbers than logits
        if self.is_mutable_collection(ATTENTION):
            self.sow(ATTENTION, "value", attention_statistics(attention_pattern(q, k), (height, width)))
        if self.is_mutable_collection(PATTERNS):
            self.sow(PATTERNS, "value", attention_pattern(q, k))
        attended = _by_named_pattern(q, k, v) if naming() else attend(q, k, v)
        z = Pattern(name="mix")(attended, v).swapaxes(1, 2)
        z = Gate(unit_axis=-2, name="head")(z).reshape(batch, tokens, self.heads * depth)
        out = Dense(channels, dtype=self.dtype, kernel_init=_zeros, name="out")(z)
        return scaled_down(x + out.reshape(x.shape), self.output_scale)

    def _heads(self, h: Float[Array, "batch tokens inner"]) -> Float[Array, "batch heads tokens depth"]:
        batch, tokens, inner = h.shape
        return h.reshape(batch, tokens, self.heads, inner // self.heads).swapaxes(1, 2)


def _by_named_pattern(q: Array, k: Array, v: Array) -> Array:
    """`attend`, with its pattern as a value that `models.traced` can read and edit."""
    pattern = NamedPattern()(attention_pattern(q, k))
    return pattern.astype(v.dtype) @ v


class Downsample(nn.Module):
    """Halves the resolution: a strided convolution, or 2x2 average pooling without one."""

    padding: int = 1
    conv: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        if not self.conv:
            return resampled(x, -1)
        sides = (0, 1) if self.padding == 0 else (1, 1)
        return conv3(x.shape[-1], self.dtype, "conv", stride=2, padding=sides)(x)


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbor, then a convolution."""

    conv: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        return conv3(x.shape[-1], self.dtype, "conv", doubled=True)(x) if self.conv else double(x)


class ConvIn(nn.Module):
    """Pixels -> features. The last `condition_channels` are the image condition, site `condition`."""

    width: int
    center: bool = False
    condition_channels: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        if self.condition_channels:
            image, condition = jnp.split(x, [x.shape[-1] - self.condition_channels], axis=-1)
            x = jnp.concatenate([image, Gate(name="condition")(condition)], axis=-1)
        x = 2 * x - 1 if self.center else x
        return conv3(self.width, self.dtype, "conv")(x.astype(self.dtype))


class ConvOut(nn.Module):
    """Features -> predicted noise, float32."""

    channels: int
    groups: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        h = silu(GroupNorm(self.groups, self.eps, name="norm")(x))
        return conv3(self.channels, self.dtype, "conv", kernel_init=_zeros)(h).astype(jnp.float32)
