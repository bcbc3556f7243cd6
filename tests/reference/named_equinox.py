"""As `named_networks`, in Equinox, which only tests need."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from reference.named_networks import BLOCKS, CHANNELS, DEPTH, WIDTH, Network, drawn


class EquinoxNetwork(eqx.Module):
    """Blocks of one example in sequence; the batch is a `jax.vmap`."""

    into: eqx.nn.Linear
    blocks: list
    out: eqx.nn.Linear
    checkpoint: bool = eqx.field(static=True)

    def __init__(self, key, checkpoint):
        first, last, *keys = jax.random.split(key, DEPTH + 2)
        self.into = eqx.nn.Linear(CHANNELS, WIDTH, key=first)
        self.blocks = [eqx.nn.Linear(WIDTH, WIDTH, key=each) for each in keys]
        self.out = eqx.nn.Linear(WIDTH, CHANNELS, key=last)
        self.checkpoint = checkpoint

    def __call__(self, x, t, edit=checkpoint_name):
        pixels = lambda layer: jax.vmap(jax.vmap(layer))
        h = pixels(self.into)(x) + 0.1 * t.astype(x.dtype)
        for block, name in zip(self.blocks, BLOCKS, strict=True):
            turn = lambda block, h: h + edit(jnp.sin(pixels(block)(h)), name)  # noqa: B023
            h = (eqx.filter_checkpoint(turn) if self.checkpoint else turn)(block, h)
        return pixels(self.out)(h)


def equinox(construct: str) -> Network:
    """An Equinox module, mapped over the batch."""
    shapes = eqx.filter_eval_shape(EquinoxNetwork, jax.random.key(3), construct == "filter_checkpoint")
    arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    arrays = drawn(arrays)

    def fn(arrays, x, t):
        run = eqx.combine(arrays, static)
        whole = lambda x, t: jax.vmap(run)(x, t)
        return (eqx.filter_jit(whole) if construct == "filter_jit" else whole)(x, t)

    def twin(edit, arrays, x, t):
        model = eqx.combine(arrays, static)
        rows = [EquinoxNetwork.__call__(model, x[row], t[row], edit) for row in range(len(x))]
        return jnp.stack(rows)

    return Network("Equinox", construct, fn, arrays, twin, BLOCKS)


def every() -> tuple[Network, ...]:
    """All rows of the table that are Equinox's."""
    return tuple(equinox(name) for name in ("vmap", "filter_jit", "filter_checkpoint"))
