"""The denoiser: a fold over named stages, and its pure facade.

A stage takes a `Stream` (activation, skip stack, embeddings of time and class) and returns the next one; it
can be entered with any number of rows, so a sweep can let the rows of an intervention join at the
stage where they begin to differ. Topology is that of diffusers' `UNet2DModel`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import AnyArray, Features, Images, PRNGKey, PyTree, Timesteps
from mechdiff.diffusion.process import to_eps
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.components import VECTORS, Component, site_type, units
from mechdiff.interventions.gates import CAPTURED, COLLECTIONS, NAMED_COLLECTIONS
from mechdiff.interventions.record import ALWAYS, Intervention, directions_in_window, in_window
from mechdiff.models import conditions, layers

STREAMS = "streams"  # collection of the whole feature maps that leave stages, by the stage's name
PART_OF_HEADS = {
    "temperature": "pattern",
    "pattern": "mix",
    "pattern_replacement": "mix",
}  # names within a block


class Stream(NamedTuple):
    """What flows between stages. Rows (the batch axis) may grow on the way."""

    h: Float[Array, "rows height width channels"]
    skips: tuple[Float[Array, "rows height width channels"], ...]
    embeddings: layers.Embeddings


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the fold.

    Attributes:
      name: key of its parameters and prefix of its sites, such as `down0.block0`.
      op: `conv_in`, `block`, `attention`, `downsample`, `upsample` or `conv_out`.
      level: index into the widths of the config.
      resolution: side of its output, pixels.
      width: channels of its output.
      push: whether its output goes on the skip stack.
      pop: whether it takes a skip tensor.
      resample: -1 halves, 1 doubles the resolution.
      heads: of attention; 0 elsewhere.
    """

    name: str
    op: str
    level: int
    resolution: int
    width: int
    push: bool = False
    pop: bool = False
    resample: int = 0
    heads: int = 0


@functools.lru_cache
def stages(config: UNetConfig) -> tuple[Stage, ...]:
    """The stages of a network in order."""
    last = len(config.widths) - 1
    side = lambda level: config.image_size // 2**level
    at = lambda level: (level, side(level), config.widths[level])
    down, up = ("block", "block") if config.resample_blocks else ("downsample", "upsample")
    blocks = config.level_blocks or (config.blocks_per_level,) * (last + 1)
    up_heads = config.up_heads or config.heads
    found = [Stage("conv_in", "conv_in", *at(0), push=True)]
    for level in range(last + 1):
        heads = config.heads[level]
        for block in range(blocks[level]):
            attends = config.down_attention[level]
            found.append(Stage(f"down{level}.block{block}", "block", *at(level), push=not attends))
            if attends:
                name = f"down{level}.attn{block}"
                found.append(Stage(name, "attention", *at(level), push=True, heads=heads))
        if level < last:
            width = config.widths[level]
            name, where = f"down{level}.downsample", (level, side(level + 1), width)
            found.append(Stage(name, down, *where, push=True, resample=-1))
    found.append(Stage("mid.block0", "block", *at(last)))
    if config.mid_attention:
        found.append(Stage("mid.attn0", "attention", *at(last), heads=config.heads[last]))
    found.append(Stage("mid.block1", "block", *at(last)))
    for level in reversed(range(last + 1)):
        for block in range(blocks[level] + 1):
            found.append(Stage(f"up{level}.block{block}", "block", *at(level), pop=True))
            if config.up_attention[level]:
                name = f"up{level}.attn{block}"
                found.append(Stage(name, "attention", *at(level), heads=up_heads[level]))
        if level > 0:
            where = (level, side(level - 1), config.widths[level])
            found.append(Stage(f"up{level}.upsample", up, *where, resample=1))
    found.append(Stage("conv_out", "conv_out", 0, side(0), config.out_channels))
    return tuple(found)


def module(config: UNetConfig, stage: Stage, dtype: Any = jnp.float32):
    """The Linen module of a stage."""
    norm = {"groups": config.norm_groups, "eps": config.norm_eps, "dtype": dtype}
    match stage.op:
        case "conv_in":
            return layers.ConvIn(stage.width, config.center_input, config.condition_channels, dtype)
        case "block":
            options = {"scale_shift": config.time_scale_shift, "dropout": config.dropout}
            return layers.ResidualBlock(stage.width, resample=stage.resample, **options, **norm)
        case "attention":
            return layers.Attention(stage.heads, **norm)
        case "downsample":
            return layers.Downsample(config.down_padding, config.resample_conv, dtype)
        case "upsample":
            return layers.Upsample(config.resample_conv, dtype)
        case "conv_out":
            return layers.ConvOut(stage.width, **norm)
    raise AssertionError(stage.op)


def _time_mlp(config: UNetConfig, dtype: Any = jnp.float32) -> layers.TimeMLP:
    features = config.time_features or config.widths[0]
    width = features * config.time_width_factor
    options = {"scale": config.timestep_scale, "dtype": dtype}
    return layers.TimeMLP(features, width, config.flip_sin_to_cos, config.frequency_shift, **options)


def _inputs(stage: Stage, stream: Stream, train: bool) -> tuple[tuple, tuple]:
    """Arguments of a stage's module and the skip stack that is left."""
    if stage.op != "block":
        return (stream.h,), stream.skips
    skip = stream.skips[-1] if stage.pop else None
    return (stream.h, stream.embeddings, skip, train), stream.skips[:-1] if stage.pop else stream.skips


def _next(stage: Stage, h: Array, skips: tuple, embeddings: layers.Embeddings) -> Stream:
    return Stream(h, (*skips, h) if stage.push else skips, embeddings)


def _label_module(config: UNetConfig, dtype: Any = jnp.float32) -> layers.LabelTable | layers.TimeMLP | None:
    """What embeds labels; None where they are no labels but embeddings."""
    time = _time_mlp(config, dtype)
    if config.class_embedding == "table":
        return layers.LabelTable(config.classes + config.null_class, time.width, dtype)
    return None if config.class_embedding == "identity" else time


def enter(
    config: UNetConfig,
    params: PyTree,
    x_t: Images,
    t: Timesteps,
    dtype: Any = jnp.float32,
    condition: Any = None,
) -> Stream:
    """The stream before the first stage.

    Args:
      condition: as `conditions.resolve` takes it.
    """
    label, image = conditions.resolve(config, condition)
    x_t = x_t if image is None else jnp.concatenate([x_t, image.astype(x_t.dtype)], axis=-1)
    with jax.default_matmul_precision(devices.precision()):
        time = _time_mlp(config, dtype).apply({"params": params["time"]}, t)
        if label is not None and (module := _label_module(config, dtype)):
            label = module.apply({"params": params["class"]}, label)
    return Stream(x_t, (), layers.Embeddings(time, label if label is None else label.astype(time.dtype)))


def at_timesteps(intervention: Intervention, t: Timesteps) -> Intervention:
    """The intervention as it acts at `t`: leaves per row, those of the identity outside its window.

    Raises:
      ConfigError: a direction at a site that is not there, or of more axes than rows of it.
    """
    acting = in_window(intervention, t)
    if not intervention.add:
        return acting
    ranks = {}
    for site, leaf in intervention.add.items():
        if site not in intervention.gate:
            raise ConfigError(unknown("site", site, intervention.gate))
        ranks[site] = 1 if site_type(site) in VECTORS else 3
        if np.ndim(leaf) not in (ranks[site], ranks[site] + 1):
            raise ConfigError(
                f"direction of {site!r} has shape {np.shape(leaf)}; it must have {ranks[site]} axes that "
                "broadcast to one row of the activation, or one of rows before them"
            )
    return dataclasses.replace(acting, add=directions_in_window(intervention, t, ranks))


def run_stage(
    config: UNetConfig,
    stage: Stage,
    params: PyTree,
    intervention: Intervention,
    stream: Stream,
    *,
    dtype: Any = jnp.float32,
    capture: tuple[str, ...] = (),
    dropout_key: PRNGKey | None = None,
) -> tuple[Stream, Mapping[str, Mapping[str, Any]]]:
    """One step of the fold.

    Args:
      intervention: already resolved by `at_timesteps`; leaves per row or shared.
      capture: collections to return, of `sites`, `attention`, `patterns` and `streams`.
    Returns:
      the next stream, and collection -> site -> captured value.
    """
    inputs, skips = _inputs(stage, stream, dropout_key is not None)
    variables = {"params": params.get(stage.name, {})}
    for collection in (*COLLECTIONS, *NAMED_COLLECTIONS):
        variables[collection] = _of_stage(stage, collection, getattr(intervention, collection))
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    with jax.default_matmul_precision(devices.precision()):
        h, sown = module(config, stage, dtype).apply(variables, *inputs, mutable=list(capture), rngs=rngs)
    captured = {name: _to_sites(stage, name, sown.get(name, {})) for name in capture}
    if STREAMS in captured:
        captured[STREAMS] = {stage.name: h}
    return _next(stage, h, skips, stream.embeddings), captured


def apply_unet(
    config: UNetConfig,
    params: PyTree,
    intervention: Intervention,
    x_t: Images,
    t: Timesteps,
    *,
    dtype: Any = jnp.float32,
    condition: Any = None,
    dropout_key: PRNGKey | None = None,
) -> Features:
    """The network's output under an intervention: the noise in `x_t` if `config.prediction` is `epsilon`.

    `denoise` is the same in units of noise for networks of any `prediction`.

    Args:
      params: as `init_unet` made them.
      intervention: `identity` of `init_unet` for the plain network; leaves may have a row axis.
      x_t: noisy images, NHWC float32.
      t: one integer timestep per row, in [0, T).
      condition: classes or images that it is conditioned on, see `conditions.resolve`.
      dropout_key: given only in training.
    """
    told = {"condition": condition, "dropout_key": dropout_key}
    return forward(config, params, intervention, x_t, t, dtype=dtype, **told)[0]


def denoise(
    config: UNetConfig,
    schedule: NoiseSchedule,
    params: PyTree,
    intervention: Intervention,
    x_t: Images,
    t: Timesteps,
    condition: Any = None,
) -> Features:
    """Predicted noise in `x_t` under an intervention, whatever the network was trained to output.

    `functools.partial(denoise, config, schedule, params, intervention)` is a `types.DenoiseFn`.
    """
    output = apply_unet(config, params, intervention, x_t, t, condition=condition)
    return to_eps(config.prediction, schedule, x_t, t, output)


def forward(
    config: UNetConfig,
    params: PyTree,
    intervention: Intervention,
    x_t: Images,
    t: Timesteps,
    *,
    dtype: Any = jnp.float32,
    condition: Any = None,
    capture: tuple[str, ...] = (),
    dropout_key: PRNGKey | None = None,
) -> tuple[Features, dict[str, dict[str, Any]]]:
    """`apply_unet`, and what was captured on the way: collection -> site -> value.

    Args:
      capture: collections, as `run_stage` takes them; `streams` has the feature map that leaves each stage.
    """
    intervention = at_timesteps(intervention, t)
    stream = enter(config, params, x_t, t, dtype, condition)
    captured: dict[str, dict[str, Any]] = {name: {} for name in capture}
    for i, stage in enumerate(stages(config)):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
        stream, found = run_stage(
            config, stage, params, intervention, stream, dtype=dtype, capture=capture, dropout_key=key
        )
        for name, values in found.items():
            captured[name].update(values)
    return stream.h, captured


def init_unet(key: PRNGKey, config: UNetConfig) -> tuple[PyTree, Intervention]:
    """Fresh parameters, and the identity intervention of this network.

    Parameters are a dict, stage -> Linen parameters, float32; `jax.jit` or `jax.eval_shape` this
    function with `config` static to avoid compiling op by op.
    """
    t = jnp.zeros((1,), jnp.int32)
    x = jnp.zeros((1, config.image_size, config.image_size, config.in_channels + config.condition_channels))
    # XLA's own generator: threefry, inlined for each parameter, takes three times as long to compile.
    bits = jax.random.key_data(key)
    key = jax.random.wrap_key_data(jnp.concatenate([bits, bits]), impl="rbg")
    keys = jax.random.split(key, len(stages(config)) + 1)
    time = _time_mlp(config)
    params = {"time": time.init(keys[0], t)["params"]}
    temb, label = time.apply({"params": params["time"]}, t), None
    if config.takes_labels:
        label, module_of_labels = jnp.zeros_like(temb), _label_module(config)
        if module_of_labels:
            params["class"] = module_of_labels.init(jax.random.fold_in(keys[0], 1), t)["params"]
    stream = Stream(x, (), layers.Embeddings(temb, label))
    found: dict[str, dict[str, Array]] = {name: {} for name in COLLECTIONS}
    for stage, stage_key in zip(stages(config), keys[1:]):
        inputs, skips = _inputs(stage, stream, False)
        h, variables = module(config, stage).init_with_output(stage_key, *inputs)
        if variables.get("params"):
            params[stage.name] = variables["params"]
        for name in COLLECTIONS:
            found[name].update(_to_sites(stage, name, variables.get(name, {})))
        stream = _next(stage, h, skips, stream.embeddings)
    return params, Intervention(**found, window=jnp.asarray(ALWAYS))


@functools.lru_cache(maxsize=64)
def init_shapes(config: UNetConfig) -> tuple[PyTree, Intervention]:
    """Shapes of what `init_unet` makes; kept, as tracing costs more than a whole sweep of a small network."""
    return jax.eval_shape(functools.partial(init_unet, config=config), jax.random.key(0))


def identity_intervention(config: UNetConfig) -> Intervention:
    """The identity intervention, as `init_unet` makes it; nothing is compiled."""
    shapes = init_shapes(config)[1]

    def filled(leaves: dict[str, Any], value: float) -> dict[str, Array]:
        return {site: jnp.asarray(np.full(leaf.shape, value, leaf.dtype)) for site, leaf in leaves.items()}

    gate, replacement = filled(shapes.gate, 1), filled(shapes.replacement, 0)
    return Intervention(gate, replacement, filled(shapes.temperature, 1), jnp.asarray(ALWAYS))


def components(config: UNetConfig, channel_groups: int = 0) -> tuple[Component, ...]:
    """Every addressable component: residual branches, heads, skips and time injections.

    Args:
      channel_groups: also list, for `res` and `skip` sites, this many equal groups of channels as
        components of their own (0: none; the width of a site gives single channels).
    """
    shapes = init_shapes(config)[1].gate
    depth = {stage.name: (i, stage.resolution) for i, stage in enumerate(stages(config))}
    found = []
    for site in sorted(shapes, key=lambda site: (depth[site.rsplit(".", 1)[0]][0], site)):
        owned = dict(units(site, shapes[site].shape[-1]))
        if channel_groups and site_type(site) in ("res", "skip"):
            owned |= _groups(site, shapes[site].shape[-1], channel_groups)
        where = depth[site.rsplit(".", 1)[0]]
        found += [Component(name, site_type(site), site, index, *where) for name, index in owned.items()]
    return tuple(found)


def _groups(site: str, width: int, count: int) -> dict[str, tuple[int, int]]:
    count = min(count, width)
    edges = [width * i // count for i in range(count + 1)]
    return {f"{site}.{low}-{high}": (low, high) for low, high in itertools.pairwise(edges)}


def count_parameters(config: UNetConfig) -> int:
    """Number of parameters, by shape alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(init_shapes(config)[0]))


def _of_stage(stage: Stage, collection: str, leaves: Mapping[str, AnyArray]) -> dict[str, dict]:
    """Flat sites -> the nested collection of one stage's module."""
    prefix = stage.name + "."
    found = {site.removeprefix(prefix): leaf for site, leaf in leaves.items() if site.startswith(prefix)}
    if collection in PART_OF_HEADS:  # addressed by the heads they act on
        found = {PART_OF_HEADS[collection]: next(iter(found.values()))} if found else {}
    return {name: {"value": leaf} for name, leaf in found.items()}


def _to_sites(stage: Stage, collection: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_of_stage`; sown values come in tuples of one."""
    if collection in (layers.ATTENTION, layers.PATTERNS):
        return {f"{stage.name}.head": found["value"][0]} if found else {}
    unwrap = (lambda value: value[0]) if collection == CAPTURED else (lambda value: value)
    return {
        f"{stage.name}.{'head' if name == 'pattern' else name}": unwrap(leaf["value"])
        for name, leaf in found.items()
    }
