"""The only module where an intervention acts on activations.

At a site with activation `a`, `a' = gate * a + (1 - gate) * replacement + add`; an attention head's logits
are divided by its temperature, and its pattern may be mixed with another one. Gate, replacement and
temperature are Linen variable collections beside `params`: `apply` refuses to run without them, so an
intervention can't be forgotten, and `grad` and `vmap` over them are JAX's own. Patterns and directions are
collections too, but absent where none is replaced or added, and then cost nothing.

Every leaf may have a leading row axis as long as the batch, so that one batch can hold many interventions;
the rank of a leaf tells whether it has.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray

COLLECTIONS = ("gate", "replacement", "temperature")
# Optional collections, with the sites that the intervention names.
NAMED_COLLECTIONS = ("pattern", "pattern_replacement", "add")
_NAMING = contextvars.ContextVar("naming", default=False)
CAPTURED = "sites"  # collection that activations are sown into, before the gate acts


def blend(
    a: Float[Array, "batch *rest"],
    gate: Float[AnyArray, "..."],
    replacement: Float[AnyArray, "..."],
    unit_axis: int,
) -> Float[Array, "batch *rest"]:
    """`gate * a + (1 - gate) * replacement`, in the dtype of `a`.

    Args:
      a: activation, rows first.
      gate: `(units,)`, or `(batch, units)` with gates for every row.
      replacement: broadcastable to one row of `a`, or with a leading row axis.
      unit_axis: negative axis of `a` along which the gate's units run.
    """
    rows = gate.shape[:-1]
    shape = list(rows or (1,)) + [1] * (a.ndim - 1)
    shape[unit_axis] = gate.shape[-1]
    gate = gate.reshape(shape).astype(a.dtype)
    return gate * a + (1 - gate) * replacement.astype(a.dtype)


class Gate(nn.Module):
    """The gate of one site. `unit_axis` is the negative axis of the activation with one gate per unit."""

    unit_axis: int = -1

    @nn.compact
    def __call__(self, a: Float[Array, "batch *rest"]) -> Float[Array, "batch *rest"]:
        gate = self.variable("gate", "value", jnp.ones, (a.shape[self.unit_axis],))
        replacement = self.variable("replacement", "value", jnp.zeros, (1,) * (a.ndim - 1))
        self.sow(CAPTURED, "value", a)
        blended = blend(a, gate.value, replacement.value, self.unit_axis)
        if not self.has_variable("add", "value"):  # decided by the pytree's structure, when traced
            return blended
        direction = self.get_variable("add", "value")
        fits = all(size in (1, full) for size, full in zip(direction.shape, a.shape, strict=True))
        if not fits or direction.shape[-1] != a.shape[-1]:
            raise ConfigError(
                f"direction for site {self.name!r} has shape {direction.shape[1:]}; it must broadcast to "
                f"{a.shape[1:]}, one row of the activation, with all of its {a.shape[-1]} channels"
            )
        return blended + jnp.asarray(direction, blended.dtype)


@contextlib.contextmanager
def named(prefix: str) -> Iterator[None]:
    """In this context a gate only names its input, `PREFIX.SITE@AXIS`, and returns it unchanged. So does a
    `NamedPattern`, which attention computes in this context alone (`naming`).

    The network becomes a function with named values (`jax.ad_checkpoint.checkpoint_name`), as
    `models.traced` takes.
    """

    def name(call, args, kwargs, context):
        if not isinstance(context.module, Gate | NamedPattern) or context.method_name != "__call__":
            return call(*args, **kwargs)
        word = "pattern" if isinstance(context.module, NamedPattern) else context.module.name
        return checkpoint_name(args[0], f"{prefix}.{word}@{context.module.unit_axis}")

    token = _NAMING.set(True)
    try:
        with nn.intercept_methods(name):
            yield
    finally:
        _NAMING.reset(token)


def naming() -> bool:
    """Whether this is the context of `named`."""
    return _NAMING.get()


class NamedPattern(nn.Module):
    """A whole pattern of attention, `(batch, heads, queries, keys)`, as a named value."""

    unit_axis: int = 1

    @nn.compact
    def __call__(
        self, pattern: Float[Array, "batch heads queries keys"]
    ) -> Float[Array, "batch heads queries keys"]:
        return pattern


class Temperature(nn.Module):
    """Divides attention logits by one temperature per head.

    It divides the queries, `(batch, heads, tokens, depth)`, instead: logits are linear in them, and they are
    fewer numbers.
    """

    @nn.compact
    def __call__(
        self, queries: Float[Array, "batch heads tokens depth"]
    ) -> Float[Array, "batch heads tokens depth"]:
        temperature = self.variable("temperature", "value", jnp.ones, (queries.shape[1],)).value
        temperature = temperature if temperature.ndim == 2 else temperature[None]
        return queries / temperature[:, :, None, None].astype(queries.dtype)


class Pattern(nn.Module):
    """Mixes each head's pattern A with another one: A' = g A + (1 - g) P, with one gate g per head.

    It is computed as A' v = g (A v) + (1 - g) (P v), so that A itself is not needed. P is `(heads, queries,
    keys)`, with 1 for heads or queries that share a pattern, and may have a leading row axis.
    """

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch heads tokens depth"], v: Float[Array, "batch heads tokens depth"]
    ) -> Float[Array, "batch heads tokens depth"]:
        if not self.has_variable("pattern", "value"):  # decided by the pytree's structure, when traced
            return z
        pattern = jnp.asarray(self.get_variable("pattern_replacement", "value"), v.dtype)
        pattern = pattern if pattern.ndim == 4 else pattern[None]
        return blend(z, self.get_variable("pattern", "value"), pattern @ v, unit_axis=-3)
