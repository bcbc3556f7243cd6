"""Small denoisers with named values inside constructs of JAX and of its libraries, and their twins.

A twin is the same network written out without the construct: its `edit(value, name)` stands where a value is
named. So the twin under `edit = gate * value` is what an ablation has to equal.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

CHANNELS, WIDTH, DEPTH = 3, 4, 2


@dataclasses.dataclass(frozen=True)
class Network:
    """One row of the table.

    Attributes:
      framework, construct: what the values stand in.
      fn: `fn(params, x, t)` with named values.
      params: its parameters.
      twin: `twin(edit, params, x, t)`, the same with `edit(value, name)` in place of names.
      sites: names that are to be listed, in order of execution.
    """

    framework: str
    construct: str
    fn: Callable
    params: Any
    twin: Callable
    sites: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.framework}-{self.construct}".replace(" ", "_")


def drawn(shapes: Any, size: float = 0.6) -> Any:
    """Normal parameters by their shapes alone: nothing is compiled while tests are collected."""
    rng = np.random.default_rng(1)
    values = jax.tree.map(lambda leaf: rng.normal(0, size, leaf.shape).astype(leaf.dtype), shapes)
    return jax.device_put(values)


def params() -> dict[str, jax.Array]:
    """Of all networks in plain JAX."""
    shapes = {"into": (CHANNELS, WIDTH), "blocks": (DEPTH, WIDTH, WIDTH), "out": (WIDTH, CHANNELS)}
    return drawn({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}, 1.0)


def _start(p, x, t):
    return x @ p["into"] + 0.1 * t.astype(x.dtype)[:, None, None, None]


def _around(middle, edit=checkpoint_name):
    """A network with a named value before, within and after `middle(blocks, h)`."""

    def fn(p, x, t):
        h = edit(_start(p, x, t), "into.mlp")
        h = middle(p["blocks"], h)
        return edit(jnp.tanh(h), "last.head") @ p["out"]

    return fn


def _network(construct, middle, twin, sites):
    def edited(edit, p, x, t):
        return _around(lambda w, h: twin(edit, w, h), edit)(p, x, t)

    sites = ("into.mlp", *sites, "last.head")
    return Network("plain", construct, _around(middle), params(), edited, sites)


def _block(w, h, name, edit=checkpoint_name):
    return h + edit(jnp.sin(h @ w), name)


def _one(edit, w, h):
    return _block(w[0], h, "mid.mlp", edit)


def _many(edit, w, h):
    for index in range(DEPTH):
        h = _block(w[index], h, f"block{index}.mlp", edit)
    return h


BLOCKS = tuple(f"block{index}.mlp" for index in range(DEPTH))


def _scan(w, h, **options):
    return jax.lax.scan(lambda h, w: (_block(w, h, "block*.mlp"), None), h, w, **options)[0]


def _scan_of_outputs(w, h):
    """Named values leave the scan as outputs, not as its carry."""
    _, terms = jax.lax.scan(lambda _, w: (None, checkpoint_name(jnp.sin(h @ w), "block*.mlp")), None, w)
    return h + terms.sum(0)


def _outputs(edit, w, h):
    return h + sum(edit(jnp.sin(h @ w[index]), name) for index, name in enumerate(BLOCKS))


def _backward(edit, w, h):
    for index in reversed(range(DEPTH)):
        h = _block(w[index], h, f"block{index}.mlp", edit)
    return h


def _nested_scan(w, h):
    def outer(h, scale):
        return jax.lax.scan(lambda h, w: (_block(scale * w, h, "group*.block*.mlp"), None), h, w)[0], None

    return jax.lax.scan(outer, h, jnp.array([0.5, 0.25]))[0]


def _nested(edit, w, h):
    for group, scale in enumerate((0.5, 0.25)):
        for index in range(DEPTH):
            h = _block(scale * w[index], h, f"group{group}.block{index}.mlp", edit)
    return h


def _fori(w, h):
    return jax.lax.fori_loop(0, DEPTH, lambda i, h: _block(w[i], h, "block*.mlp"), h)


def _cond(w, h):
    branches = (lambda h: _block(w[0], h, "high.mlp"), lambda h: _block(w[1], h, "low.mlp"))
    return jax.lax.cond(jnp.sum(h) > 1e6, *branches, h)


def _switch(w, h):
    index = jnp.int32(jnp.sum(h) < 1e6)
    branches = [lambda h: h, lambda h: _block(w[1], h, "mid.mlp"), lambda h: _block(w[0], h, "mid.mlp")]
    return jax.lax.switch(index, branches, h)


def _remat(w, h):
    policy = jax.checkpoint_policies.save_only_these_names("mid.mlp")
    return jax.checkpoint(lambda h: _block(w[0], h, "mid.mlp"), policy=policy)(h)


def _jit_in_remat_in_scan(w, h):
    block = jax.checkpoint(jax.jit(lambda w, h: _block(w, h, "block*.mlp")))
    return jax.lax.scan(lambda h, w: (block(w, h), None), h, w)[0]


@jax.custom_jvp
def _jvp_block(w, h):
    return _block(w, h, "mid.mlp")


@_jvp_block.defjvp
def _jvp_rule(primals, tangents):
    return jax.jvp(lambda w, h: h + jnp.sin(h @ w), primals, tangents)


@jax.custom_vjp
def _vjp_block(w, h):
    return _block(w, h, "mid.mlp")


_vjp_block.defvjp(
    lambda w, h: jax.vjp(lambda w, h: h + jnp.sin(h @ w), w, h), lambda pull_back, slope: pull_back(slope)
)


def _vmap(w, h):
    return jax.vmap(lambda h: _block(w[0], h, "mid.mlp"))(h)


def _vmap_elsewhere(w, h):
    """Rows end up on another axis than the first."""
    return jax.vmap(lambda h: _block(w[0], h, "mid.mlp"), in_axes=2, out_axes=2)(
        h.transpose(1, 2, 0, 3)
    ).transpose(2, 0, 1, 3)


def _shard_map(w, h):
    devices = min(2, jax.device_count())
    mesh = jax.make_mesh((devices,), ("rows",), axis_types=(AxisType.Auto,))
    rows, shared = PartitionSpec("rows"), PartitionSpec()
    run = jax.shard_map(
        lambda w, h: _block(w, h, "mid.mlp"), mesh=mesh, in_specs=(shared, rows), out_specs=rows
    )
    return run(w[0], h)


PLAIN = (
    _network("no construct", lambda w, h: _one(checkpoint_name, w, h), _one, ("mid.mlp",)),
    _network("jit", jax.jit(lambda w, h: _one(checkpoint_name, w, h)), _one, ("mid.mlp",)),
    _network("scan", _scan, _many, BLOCKS),
    _network("scan, reverse", lambda w, h: _scan(w, h, reverse=True), _backward, BLOCKS[::-1]),
    _network("scan, unrolled", lambda w, h: _scan(w, h, unroll=2), _many, BLOCKS),
    _network("scan, outputs", _scan_of_outputs, _outputs, BLOCKS),
    _network(
        "scan in scan",
        _nested_scan,
        _nested,
        tuple(f"group{group}.{block}" for group in range(2) for block in BLOCKS),
    ),
    _network("fori_loop", _fori, _many, BLOCKS),
    _network("cond", _cond, lambda edit, w, h: _block(w[1], h, "low.mlp", edit), ("low.mlp", "high.mlp")),
    _network("switch", _switch, lambda edit, w, h: _block(w[1], h, "mid.mlp", edit), ("mid.mlp",)),
    _network("remat", _remat, _one, ("mid.mlp",)),
    _network("jit in remat in scan", _jit_in_remat_in_scan, _many, BLOCKS),
    _network("custom_jvp", lambda w, h: _jvp_block(w[0], h), _one, ("mid.mlp",)),
    _network("custom_vjp", lambda w, h: _vjp_block(w[0], h), _one, ("mid.mlp",)),
    _network("vmap", _vmap, _one, ("mid.mlp",)),
    _network("vmap, other axis", _vmap_elsewhere, _one, ("mid.mlp",)),
    _network("shard_map", _shard_map, _one, ("mid.mlp",)),
)


class LinenBlock(nn.Module):
    """`h + sin(dense(h))`, in the form that `nn.scan` takes."""

    name_of_site: str

    @nn.compact
    def __call__(self, h, _=None):
        return h + checkpoint_name(jnp.sin(nn.Dense(WIDTH, name="dense")(h)), self.name_of_site), None


class LinenNetwork(nn.Module):
    """Blocks in sequence, each transformed, or scanned."""

    construct: str

    @nn.compact
    def __call__(self, x, t):
        h = nn.Dense(WIDTH, name="into")(x) + 0.1 * t.astype(x.dtype)[:, None, None, None]
        if "scan" in self.construct:
            block = nn.remat(LinenBlock) if "remat" in self.construct else LinenBlock
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            h, _ = nn.scan(block, length=DEPTH, **axes)("block*.mlp", name="blocks")(h, None)
        else:
            lift = {"nn.remat": nn.remat, "nn.jit": nn.jit, "no construct": lambda module: module}
            block = lift[self.construct](LinenBlock)
            for index in range(DEPTH):
                h, _ = block(BLOCKS[index], name=f"block{index}")(h)
        return nn.Dense(CHANNELS, name="out")(h)


def _dense(weights, h):
    return h @ weights["kernel"] + weights["bias"]


def _linen_twin(edit, variables, x, t):
    weights = variables["params"]
    h = _dense(weights["into"], x) + 0.1 * t.astype(x.dtype)[:, None, None, None]
    for index in range(DEPTH):
        if "blocks" in weights:
            block = jax.tree.map(lambda leaf: leaf[index], weights["blocks"]["dense"])  # noqa: B023
        else:
            block = weights[f"block{index}"]["dense"]
        h = h + edit(jnp.sin(_dense(block, h)), BLOCKS[index])
    return _dense(weights["out"], h)


def linen(construct: str) -> Network:
    """A Linen network under one of its lifted transformations."""
    module = LinenNetwork(construct)
    example = np.ones((1, 2, 2, CHANNELS), np.float32), np.zeros(1, np.int32)
    variables = drawn(jax.eval_shape(module.init, jax.random.key(1), *example))
    return Network("Linen", construct, module.apply, variables, _linen_twin, BLOCKS)


class NnxBlock(nnx.Module):
    """`h + sin(linear(h))`."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, h, name):
        return h + checkpoint_name(jnp.sin(self.linear(h)), name)


class NnxNetwork(nnx.Module):
    """Blocks in sequence, each transformed, or scanned."""

    def __init__(self, construct, rngs):
        self.construct = construct
        self.into = nnx.Linear(CHANNELS, WIDTH, rngs=rngs)
        if construct == "nnx.scan":
            self.blocks = nnx.vmap(NnxBlock)(rngs.split(DEPTH))
        else:
            self.blocks = nnx.List([NnxBlock(rngs) for _ in range(DEPTH)])
        self.out = nnx.Linear(WIDTH, CHANNELS, rngs=rngs)

    def __call__(self, x, t):
        h = self.into(x) + 0.1 * t.astype(x.dtype)[:, None, None, None]
        return self.out(self._middle(h))

    def _middle(self, h):
        if self.construct == "nnx.scan":
            turn = nnx.scan(
                lambda h, block: block(h, "block*.mlp"), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            return turn(h, self.blocks)
        lift = {"nnx.remat": nnx.remat, "nnx.jit": nnx.jit, "no construct": lambda fn: fn}[self.construct]
        for block, name in zip(self.blocks, BLOCKS, strict=True):
            h = lift(lambda block, h: block(h, name))(block, h)  # noqa: B023
        return h


def nnx_network(construct: str) -> Network:
    """An NNX network under one of its transformations."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: NnxNetwork(construct, nnx.Rngs(2))))
    state = drawn(shapes)

    def twin(edit, state, x, t):
        model = nnx.merge(graph, state)
        h = model.into(x) + 0.1 * t.astype(x.dtype)[:, None, None, None]
        for index, name in enumerate(BLOCKS):
            block = model.blocks[index] if construct != "nnx.scan" else None
            if block is None:
                kernel, bias = (
                    leaf[index] for leaf in (model.blocks.linear.kernel[...], model.blocks.linear.bias[...])
                )
                h = h + edit(jnp.sin(h @ kernel + bias), name)
            else:
                h = h + edit(jnp.sin(block.linear(h)), name)
        return model.out(h)

    return Network("NNX", construct, lambda state, x, t: nnx.merge(graph, state)(x, t), state, twin, BLOCKS)


def every() -> tuple[Network, ...]:
    """All rows of the table but Equinox's, which are in `named_equinox`."""
    return (
        *PLAIN,
        *(linen(name) for name in ("no construct", "nn.jit", "nn.remat", "nn.scan", "nn.remat in nn.scan")),
        *(nnx_network(name) for name in ("no construct", "nnx.jit", "nnx.remat", "nnx.scan")),
    )
