"""The forward pass of `Unet` in denoising_diffusion_pytorch (lucidrains), releases 1.9 to 2, its parts named.

Residual blocks whose first half is scaled and shifted by the time, RMS norms over channels (group norms in
the blocks of releases below 2), linear attention
(Shen et al. 2018) at the outer levels and softmax attention inside; both have learned memory keys and values
besides the positions.

Sites, in the words of this package's UNet: `down0.block0.time` (scale and shift of a block), `.res` (its
residual branch), `down0.attn.head` (the output projection's input), `mid.attn.pattern` (softmax attention
over positions, then memory), `up0.block0.skip`, `out.skip`. The linear attention has no pattern: its weights
are a product of two softmaxes over other axes, not a distribution over keys, so its entropy is
undefined and none is given.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Real

from mechdiff.core.types import AnyArray, Features
from mechdiff.models.pretrained.plain_layers import Tensors, convolve, enlarged, linear

TINY = 1e-12  # of torch's `normalize`


@dataclasses.dataclass(frozen=True)
class Network:
    """The options of a network that its tensors don't tell; calling it is the forward pass.

    Attributes:
      levels: number of resolution levels.
      channels: of an image.
      self_condition: an earlier estimate of the image, zeros here, is concatenated to the input.
      theta: period of the slowest feature of time, over 2 pi.
      groups: of the group norms in blocks, which releases 1.9 to 1.11 have instead of RMS norms.
    """

    levels: int
    channels: int = 3
    self_condition: bool = False
    theta: float = 10000.0
    groups: int = 8

    def __call__(self, params: Tensors, x: Features, t: Real[AnyArray, " batch"]) -> Features:
        """The network's output, `(batch, height, width, channels)`; a learned variance is dropped."""
        if self.self_condition:
            x = jnp.concatenate([jnp.zeros_like(x), x], axis=-1)
        time, block = _time(params, t, self.theta), functools.partial(_block, groups=self.groups)
        h = first = convolve(params, "init_conv", x)
        skips = []
        for level in range(self.levels):
            theirs, ours = f"downs.{level}", f"down{level}"
            h = block(params, f"{theirs}.0", f"{ours}.block0", h, time)
            skips.append(h)
            h = block(params, f"{theirs}.1", f"{ours}.block1", h, time)
            h = h + _attention(params, f"{theirs}.2", f"{ours}.attn", h)
            skips.append(h)
            last = level == self.levels - 1
            h = convolve(params, f"{theirs}.3", h) if last else convolve(params, f"{theirs}.3.1", _packed(h))
        h = block(params, "mid_block1", "mid.block0", h, time)
        h = h + _attention(params, "mid_attn", "mid.attn", h)
        h = block(params, "mid_block2", "mid.block1", h, time)
        for index in range(self.levels):
            level = self.levels - 1 - index
            theirs, ours = f"ups.{index}", f"up{level}"
            h = _joined(h, skips.pop(), f"{ours}.block0")
            h = block(params, f"{theirs}.0", f"{ours}.block0", h, time)
            h = _joined(h, skips.pop(), f"{ours}.block1")
            h = block(params, f"{theirs}.1", f"{ours}.block1", h, time)
            h = h + _attention(params, f"{theirs}.2", f"{ours}.attn", h)
            h = (
                convolve(params, f"{theirs}.3", h)
                if not level
                else convolve(params, f"{theirs}.3.1", enlarged(h))
            )
        h = _joined(h, first, "out")
        h = block(params, "final_res_block", "out.block0", h, time)
        return convolve(params, "final_conv", h)[..., : self.channels]


def _time(params: Tensors, t: Real[AnyArray, " batch"], theta: float) -> Float[AnyArray, "batch width"]:
    t = t.astype(jnp.float32)
    if "time_mlp.0.weights" in params:  # random or learned frequencies
        phase = t[:, None] * params["time_mlp.0.weights"] * (2 * math.pi)
        features = jnp.concatenate([t[:, None], jnp.sin(phase), jnp.cos(phase)], axis=-1)
    else:
        half = params["time_mlp.1.weight"].shape[1] // 2
        phase = t[:, None] * jnp.exp(-math.log(theta) / (half - 1) * jnp.arange(half))
        features = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    hidden = jax.nn.gelu(linear(params, "time_mlp.1", features), approximate=False)
    return linear(params, "time_mlp.3", hidden)


def _block_norm(params: Tensors, name: str, x: Features, groups: int) -> Features:
    """The norm of a block: over groups of channels where it has a bias, else RMS."""
    if f"{name}.bias" not in params:
        return _norm(params, name, x)
    split = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = split.mean((1, 3), keepdims=True)
    variance = jnp.square(split - mean).mean((1, 3), keepdims=True)
    normed = ((split - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
    return normed * params[f"{name}.weight"] + params[f"{name}.bias"]


def _norm(params: Tensors, name: str, x: Features) -> Features:
    """RMS norm over channels, with torch's guard against a norm of zero."""
    gain = params[f"{name}.g"].reshape(-1)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.maximum(square, TINY**2))
    return x / length * gain * math.sqrt(x.shape[-1])


def _block(params: Tensors, theirs: str, ours: str, x: Features, time: AnyArray, groups: int) -> Features:
    """A residual block: two convolutions, normalized, the first scaled and shifted by the time."""
    injected = checkpoint_name(linear(params, f"{theirs}.mlp.1", jax.nn.silu(time)), f"{ours}.time")
    scale, shift = jnp.split(injected[:, None, None], 2, axis=-1)
    h = _block_norm(params, f"{theirs}.block1.norm", convolve(params, f"{theirs}.block1.proj", x), groups)
    h = jax.nn.silu(h * (scale + 1) + shift)
    h = _block_norm(params, f"{theirs}.block2.norm", convolve(params, f"{theirs}.block2.proj", h), groups)
    straight = convolve(params, f"{theirs}.res_conv", x) if f"{theirs}.res_conv.weight" in params else x
    return straight + checkpoint_name(jax.nn.silu(h), f"{ours}.res")


def _attention(params: Tensors, theirs: str, ours: str, x: Features) -> Features:
    """Output of an attention layer's branch; softmax attention if no norm follows its output projection."""
    is_linear = f"{theirs}.to_out.0.weight" in params
    memory = params[f"{theirs}.mem_kv"]
    heads = memory.shape[1]
    depth = memory.shape[2] if is_linear else memory.shape[3]
    qkv = convolve(params, f"{theirs}.to_qkv", _norm(params, f"{theirs}.norm", x))
    q, k, v = (a.reshape(x.shape[0], -1, heads, depth) for a in jnp.split(qkv, 3, axis=-1))
    to_tokens = (0, 3, 1, 2) if is_linear else (0, 2, 1, 3)  # memory: (k or v, memory, heads, depth)
    mixing = _mixed_linearly if is_linear else _mixed_by_softmax
    mixed = mixing(
        q, *(_with_memory(a, m) for a, m in zip((k, v), memory.transpose(to_tokens), strict=True)), ours
    )
    mixed = checkpoint_name(mixed, f"{ours}.head@2").reshape(*x.shape[:-1], heads * depth)
    if not is_linear:
        return convolve(params, f"{theirs}.to_out", mixed)
    return _norm(params, f"{theirs}.to_out.1", convolve(params, f"{theirs}.to_out.0", mixed))


def _with_memory(tokens: AnyArray, memory: AnyArray) -> AnyArray:
    """`(batch, positions and memory, heads, depth)`."""
    repeated = jnp.broadcast_to(memory, (tokens.shape[0], *memory.shape))
    return jnp.concatenate([tokens, repeated], axis=1)


def _mixed_linearly(q: AnyArray, k: AnyArray, v: AnyArray, ours: str) -> AnyArray:
    """Queries are softmaxed over the depth of a head, keys over positions."""
    q = jax.nn.softmax(q, axis=-1) / math.sqrt(q.shape[-1])
    context = jnp.einsum("bnhd,bnhe->bhde", jax.nn.softmax(k, axis=1), v)
    return jnp.einsum("bhde,bnhd->bnhe", context, q)


def _mixed_by_softmax(q: AnyArray, k: AnyArray, v: AnyArray, ours: str) -> AnyArray:
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    pattern = checkpoint_name(jax.nn.softmax(logits, axis=-1), f"{ours}.pattern@1")
    return jnp.einsum("bhqk,bkhd->bqhd", pattern, v)


def _joined(h: Features, skip: Features, ours: str) -> Features:
    return jnp.concatenate([h, checkpoint_name(skip, f"{ours}.skip")], axis=-1)


def _packed(x: Features) -> Features:
    """Half the sides; the four pixels of a square become channels, each channel's together."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)
