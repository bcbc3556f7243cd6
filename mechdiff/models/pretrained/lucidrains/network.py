"""The forward pass of `Unet` in denoising_diffusion_pytorch (lucidrains), releases 1.9 to 2, values named.

The time scales and shifts the first half of each residual block. Norms are RMS norms over channels; in blocks
of releases before 2, group norms. Attention is linear (Shen et al. 2018) at the outer levels and softmax
further in; both kinds also attend to a learned memory of keys and values.

Sites are called as in this package's UNet: `down0.block0.time` (scale and shift of a block), `.res` (its
residual branch), `down0.attn.head` (the output projection's input), `mid.attn.pattern` (softmax attention
over positions, then memory), `up0.block0.skip`, `out.skip`. Linear attention has no site `pattern`: its
weights are a product of two softmaxes over other axes, not a distribution over keys, so they have no entropy.
A name that ends in `@AXIS` says along which axis heads run.

Functions below take two names: `theirs`, of tensors in the state dict, and `ours`, of sites.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Real

from mechdiff.core.types import AnyArray, Features
from mechdiff.models.convolution import double
from mechdiff.models.pretrained.plain_layers import Tensors, convolve, group_norm, linear

MIN_NORM = 1e-12  # as in torch's `normalize`


@dataclasses.dataclass(frozen=True)
class Network:
    """The options of a network that can't be inferred from its tensors; calling it is the forward pass.

    Attributes:
      levels: number of resolution levels.
      channels: of an image.
      self_condition: whether an earlier estimate of the image, here zeros, is concatenated to the input.
      theta: the slowest feature of the time has a period of 2 pi `theta` timesteps.
      groups: number of groups of the group norms in blocks; releases 1.9 to 1.11 have these instead of RMS
        norms.
    """

    levels: int
    channels: int = 3
    self_condition: bool = False
    theta: float = 10000.0
    groups: int = 8

    def __call__(self, params: Tensors, x: Features, t: Real[AnyArray, " batch"]) -> Features:
        """The network's output, `(batch, height, width, channels)`, without a learned variance.

        Args:
          params: the state dict, names of tensors as in `Unet`.
          x: noisy images, `(batch, height, width, channels)`; sides are multiples of 2 ** (levels - 1).
          t: timesteps, `(batch,)`.
        """
        if self.self_condition:
            x = jnp.concatenate([jnp.zeros_like(x), x], axis=-1)
        time = _time_embedding(params, t, self.theta)
        block = functools.partial(_block, groups=self.groups)
        h = first = convolve(params, "init_conv", x)
        skips = []
        for level in range(self.levels):
            theirs, ours = f"downs.{level}", f"down{level}"
            h = block(params, f"{theirs}.0", f"{ours}.block0", h, time)
            skips.append(h)
            h = block(params, f"{theirs}.1", f"{ours}.block1", h, time)
            h = h + _attention(params, f"{theirs}.2", f"{ours}.attn", h)
            skips.append(h)
            innermost = level == self.levels - 1
            h = (
                convolve(params, f"{theirs}.3", h)
                if innermost
                else convolve(params, f"{theirs}.3.1", _space_to_depth(h))
            )
        h = block(params, "mid_block1", "mid.block0", h, time)
        h = h + _attention(params, "mid_attn", "mid.attn", h)
        h = block(params, "mid_block2", "mid.block1", h, time)
        for index, level in enumerate(reversed(range(self.levels))):
            theirs, ours = f"ups.{index}", f"up{level}"
            h = _with_skip(h, skips.pop(), f"{ours}.block0")
            h = block(params, f"{theirs}.0", f"{ours}.block0", h, time)
            h = _with_skip(h, skips.pop(), f"{ours}.block1")
            h = block(params, f"{theirs}.1", f"{ours}.block1", h, time)
            h = h + _attention(params, f"{theirs}.2", f"{ours}.attn", h)
            outermost = level == 0
            h = (
                convolve(params, f"{theirs}.3", h)
                if outermost
                else convolve(params, f"{theirs}.3.1", double(h))
            )
        h = _with_skip(h, first, "out")
        h = block(params, "final_res_block", "out.block0", h, time)
        return convolve(params, "final_conv", h)[..., : self.channels]


def _time_embedding(
    params: Tensors, t: Real[AnyArray, " batch"], theta: float
) -> Float[AnyArray, "batch width"]:
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
    """The norm of a block: a group norm if it has a bias, else an RMS norm."""
    if f"{name}.bias" in params:
        return group_norm(params, name, x, groups)
    return _rms_norm(params, name, x)


def _rms_norm(params: Tensors, name: str, x: Features) -> Features:
    """RMS norm over channels; a norm of zero is raised to `MIN_NORM`."""
    gain = params[f"{name}.g"].reshape(-1)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.maximum(square, MIN_NORM**2))
    return x / norm * gain * math.sqrt(x.shape[-1])


def _block(params: Tensors, theirs: str, ours: str, x: Features, time: AnyArray, groups: int) -> Features:
    """A residual block: two convolutions, normalized, the first scaled and shifted by the time."""
    injected = checkpoint_name(linear(params, f"{theirs}.mlp.1", jax.nn.silu(time)), f"{ours}.time")
    scale, shift = jnp.split(injected[:, None, None], 2, axis=-1)
    h = _block_norm(params, f"{theirs}.block1.norm", convolve(params, f"{theirs}.block1.proj", x), groups)
    h = jax.nn.silu(h * (scale + 1) + shift)
    h = _block_norm(params, f"{theirs}.block2.norm", convolve(params, f"{theirs}.block2.proj", h), groups)
    shortcut = convolve(params, f"{theirs}.res_conv", x) if f"{theirs}.res_conv.weight" in params else x
    return shortcut + checkpoint_name(jax.nn.silu(h), f"{ours}.res")


def _attention(params: Tensors, theirs: str, ours: str, x: Features) -> Features:
    """The branch of an attention layer, to be added to its input."""
    is_linear = f"{theirs}.to_out.0.weight" in params  # only there a norm follows the output projection
    memory = params[f"{theirs}.mem_kv"]
    heads = memory.shape[1]
    depth = memory.shape[2] if is_linear else memory.shape[3]
    qkv = convolve(params, f"{theirs}.to_qkv", _rms_norm(params, f"{theirs}.norm", x))
    q, k, v = (a.reshape(x.shape[0], -1, heads, depth) for a in jnp.split(qkv, 3, axis=-1))
    # To (memory, heads, depth), as tokens are; keys come first.
    memory_k, memory_v = memory.transpose((0, 3, 1, 2) if is_linear else (0, 2, 1, 3))
    k, v = _with_memory(k, memory_k), _with_memory(v, memory_v)
    mixed = _linear_attention(q, k, v) if is_linear else _softmax_attention(q, k, v, ours)
    mixed = checkpoint_name(mixed, f"{ours}.head@2").reshape(*x.shape[:-1], heads * depth)
    if not is_linear:
        return convolve(params, f"{theirs}.to_out", mixed)
    return _rms_norm(params, f"{theirs}.to_out.1", convolve(params, f"{theirs}.to_out.0", mixed))


def _with_memory(tokens: AnyArray, memory: AnyArray) -> AnyArray:
    """Tokens of every row, then the memory: `(batch, positions + memory, heads, depth)`."""
    repeated = jnp.broadcast_to(memory, (tokens.shape[0], *memory.shape))
    return jnp.concatenate([tokens, repeated], axis=1)


def _linear_attention(q: AnyArray, k: AnyArray, v: AnyArray) -> AnyArray:
    """A softmax of queries over the depth of a head, and of keys over positions and memory."""
    q = jax.nn.softmax(q, axis=-1) / math.sqrt(q.shape[-1])
    context = jnp.einsum("bnhd,bnhe->bhde", jax.nn.softmax(k, axis=1), v)
    return jnp.einsum("bhde,bnhd->bnhe", context, q)


def _softmax_attention(q: AnyArray, k: AnyArray, v: AnyArray, ours: str) -> AnyArray:
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    pattern = checkpoint_name(jax.nn.softmax(logits, axis=-1), f"{ours}.pattern@1")
    return jnp.einsum("bhqk,bkhd->bqhd", pattern, v)


def _with_skip(h: Features, skip: Features, ours: str) -> Features:
    return jnp.concatenate([h, checkpoint_name(skip, f"{ours}.skip")], axis=-1)


def _space_to_depth(x: Features) -> Features:
    """Halves the sides: a channel's four pixels of a 2x2 square become four consecutive channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)
