"""The forward pass of EDM's networks (Karras et al. 2022), written from the paper's table 7 and tensor names.

DhariwalUNet (ADM's) and SongUNet (DDPM++), which averages to make images smaller and repeats to make them
larger (no FIR filter), its encoder without auxiliary path. Sites as in our UNet: `enc8.block0.res`, `.time`,
`.attn.head`, `.attn.pattern`, `dec8.block0.skip`, and `class` where images have classes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Int, Real

from mechdiff.core.types import AnyArray, Features
from mechdiff.models.convolution import double
from mechdiff.models.pretrained.plain_layers import Tensors, convolve, group_norm, linear


@dataclasses.dataclass(frozen=True)
class Network:
    """Options of a network that can't be inferred from its tensors; calling it is F of Karras et al. at
    ln(sigma) / 4.

    Attributes:
      kind: `DhariwalUNet` or `SongUNet`.
      sides: of the levels, outermost first.
      blocks: per level of the encoder; the decoder has one more.
      classes: number of classes, 0: unconditional; the label `classes` stands for no class.
    """

    kind: str
    sides: tuple[int, ...]
    blocks: int
    classes: int = 0

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class."""
        return self.classes or None

    @property
    def is_song(self) -> bool:
        """Whether it is DDPM++'s."""
        return self.kind == "SongUNet"

    def __call__(
        self,
        params: Tensors,
        x: Features,
        time: Real[AnyArray, " batch"],
        label: Int[AnyArray, " batch"] | None = None,
    ) -> Features:
        """`(batch, height, width, channels)`."""
        emb = self._embedding(params, time, label)
        h = convolve(params, f"enc.{self.sides[0]}x{self.sides[0]}_conv", x)
        skips = [h]
        for side in self.sides:
            if side != self.sides[0]:
                h = self._block(params, "enc", side, "down", h, emb)
                skips.append(h)
            for index in range(self.blocks):
                h = self._block(params, "enc", side, f"block{index}", h, emb)
                skips.append(h)
        for side in reversed(self.sides):
            starts = ("in0", "in1") if side == self.sides[-1] else ("up",)
            for part in starts:
                h = self._block(params, "dec", side, part, h, emb)
            for index in range(self.blocks + 1):
                skip = checkpoint_name(skips.pop(), f"dec{side}.block{index}.skip")
                h = jnp.concatenate([h, skip], axis=-1)
                h = self._block(params, "dec", side, f"block{index}", h, emb)
        name = f"dec.{self.sides[0]}x{self.sides[0]}_aux_" if self.is_song else "out_"
        return convolve(params, f"{name}conv", jax.nn.silu(self._norm(params, f"{name}norm", h)))

    def _embedding(self, params: Tensors, time: AnyArray, label: AnyArray | None) -> AnyArray:
        half = params["map_layer0.weight"].shape[1] // 2
        powers = jnp.arange(half) / (half - 1 if self.is_song else half)
        phase = time.astype(jnp.float32)[:, None] * (1 / 10000) ** powers
        waves = (jnp.sin(phase), jnp.cos(phase)) if self.is_song else (jnp.cos(phase), jnp.sin(phase))
        emb, by_class = jnp.concatenate(waves, axis=-1), 0.0
        if self.classes:
            by_class = linear(params, "map_label", jax.nn.one_hot(label, self.classes) * self._class_scale)
            by_class = checkpoint_name(by_class, "class")
        if self.is_song:
            emb = jax.nn.silu(linear(params, "map_layer0", emb + by_class))
            return jax.nn.silu(linear(params, "map_layer1", emb))
        emb = jax.nn.silu(linear(params, "map_layer0", emb))
        return jax.nn.silu(linear(params, "map_layer1", emb) + by_class)

    @property
    def _class_scale(self) -> float:
        return math.sqrt(self.classes) if self.is_song else 1.0

    def _norm(self, params: Tensors, name: str, x: Features) -> Features:
        """Group norm with 32 groups, or fewer where they would have less than four channels."""
        groups = min(32, x.shape[-1] // 4)
        return group_norm(params, name, x, groups, eps=1e-6 if self.is_song else 1e-5)

    def _block(
        self, params: Tensors, half: str, side: int, part: str, x: Features, emb: AnyArray
    ) -> Features:
        theirs, ours = f"{half}.{side}x{side}_{part}", f"{half}{side}.{part}"
        scale = math.sqrt(0.5) if self.is_song else 1.0
        h = _resampled(jax.nn.silu(self._norm(params, f"{theirs}.norm0", x)), part)
        h = convolve(params, f"{theirs}.conv0", h)
        injected = checkpoint_name(linear(params, f"{theirs}.affine", emb), f"{ours}.time")[:, None, None]
        if self.is_song:
            h = self._norm(params, f"{theirs}.norm1", h + injected)
        else:
            gain, shift = jnp.split(injected, 2, axis=-1)
            h = self._norm(params, f"{theirs}.norm1", h) * (gain + 1) + shift
        h = checkpoint_name(convolve(params, f"{theirs}.conv1", jax.nn.silu(h)), f"{ours}.res")
        straight = _resampled(x, part)
        if f"{theirs}.skip.weight" in params:
            straight = convolve(params, f"{theirs}.skip", straight)
        h = (h + straight) * scale
        if f"{theirs}.qkv.weight" not in params:
            return h
        return (h + self._attention(params, theirs, f"{ours}.attn", h)) * scale

    def _attention(self, params: Tensors, theirs: str, ours: str, x: Features) -> Features:
        batch, height, width, channels = x.shape
        heads = 1 if self.is_song else channels // 64
        qkv = convolve(params, f"{theirs}.qkv", self._norm(params, f"{theirs}.norm2", x))
        qkv = qkv.reshape(batch, height * width, heads, channels // heads, 3)
        q, k, v = qkv[..., 0], qkv[..., 1], qkv[..., 2]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        pattern = checkpoint_name(jax.nn.softmax(logits, axis=-1), f"{ours}.pattern@1")
        mixed = checkpoint_name(jnp.einsum("bhqk,bkhd->bqhd", pattern, v), f"{ours}.head@2")
        return convolve(params, f"{theirs}.proj", mixed.reshape(x.shape))


def _resampled(x: Features, part: str) -> Features:
    if part == "up":
        return double(x)
    if part == "down":
        batch, height, width, channels = x.shape
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    return x
