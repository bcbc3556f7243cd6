"""How a stage runs: what flows in and out, its Linen module, and what of an intervention acts in it."""

import dataclasses
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
from mechdiff.interventions.components import row_rank, site_stage, site_type
from mechdiff.interventions.gates import CAPTURED, COLLECTIONS, NAMED_COLLECTIONS, Gate
from mechdiff.interventions.record import Intervention, directions_in_window, in_window
from mechdiff.models import blocks, conditions, layers
from mechdiff.models.precomputed_skips import (
    Division,
    PrecomputedSkip,
    divide,
    params_without_skip,
    precompute,
)
from mechdiff.models.stages import Stage

STREAMS = "streams"  # collection of the whole feature maps that leave stages, by the stage's name
# Collections that are addressed by the site of the heads they act on, and act elsewhere in the attention:
# on the module of this name.
MODULE_OF_HEADS = {"temperature": "pattern", "pattern": "mix", "pattern_replacement": "mix"}


class Stream(NamedTuple):
    """The values passed from stage to stage. Rows (the batch axis) may become more on the way."""

    h: Float[Array, "rows height width channels"]
    skips: tuple[Float[Array, "rows height width channels"], ...]
    embeddings: blocks.Embeddings


class Mode(NamedTuple):
    """How layers compute.

    Attributes:
      dtype: of layers; their parameters stay float32.
      dropout_key: given only in training.
    """

    dtype: Any = jnp.float32
    dropout_key: PRNGKey | None = None


EVALUATION = Mode()


def module(config: UNetConfig, stage: Stage, dtype: Any = jnp.float32):
    """The Linen module of a stage."""
    norm = {"groups": config.norm_groups, "eps": config.norm_eps, "dtype": dtype}
    middle = stage.parsed_name is not None and stage.parsed_name.side == "mid"
    scale = config.mid_output_scale if middle else 1.0
    match stage.op:
        case "conv_in":
            return blocks.ConvIn(stage.width, config.center_input, config.condition_channels, dtype)
        case "block":
            options = {"scale_shift": config.time_scale_shift, "dropout": config.dropout}
            options |= {"activation": config.activation, "output_scale": scale}
            return blocks.ResidualBlock(stage.width, resample=stage.resample, **options, **norm)
        case "attention":
            if middle and config.mid_norm_groups >= 0:
                norm |= {"groups": config.mid_norm_groups}
            return blocks.Attention(stage.heads, depth=config.head_width, output_scale=scale, **norm)
        case "downsample":
            return blocks.Downsample(config.down_padding, config.resample_conv, dtype)
        case "upsample":
            return blocks.Upsample(config.resample_conv, dtype)
        case "conv_out":
            return blocks.ConvOut(stage.width, **norm)
    raise AssertionError(stage.op)


def time_mlp(config: UNetConfig, dtype: Any = jnp.float32) -> blocks.TimeMLP:
    """The Linen module that embeds timesteps."""
    features = config.time_features or config.widths[0]
    options = {"scale": config.timestep_scale, "dtype": dtype}
    return blocks.TimeMLP(
        features, config.embedding_width, config.flip_sin_to_cos, config.frequency_shift, **options
    )


def label_module(config: UNetConfig, dtype: Any = jnp.float32) -> blocks.LabelTable | blocks.TimeMLP | None:
    """The Linen module that embeds labels; None where labels are embeddings already."""
    time = time_mlp(config, dtype)
    if config.class_embedding == "table":
        return blocks.LabelTable(config.label_count, time.width, dtype)
    return None if config.class_embedding == "identity" else time


def enter(
    config: UNetConfig,
    params: PyTree,
    x_t: Images,
    t: layers.Times,
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
        time = time_mlp(config, dtype).apply({"params": params["time"]}, t)
        if label is not None and (module := label_module(config, dtype)):
            label = module.apply({"params": params["class"]}, label)
    return Stream(x_t, (), blocks.Embeddings(time, label if label is None else label.astype(time.dtype)))


def at_timesteps(intervention: Intervention, t: Timesteps) -> Intervention:
    """The intervention as it acts at `t`: leaves per row, those of the identity outside its window.

    Raises:
      ConfigError: a direction at a site that does not exist, or with more axes than its rows.
    """
    acting = in_window(intervention, t)
    if not intervention.add:
        return acting
    ranks = {}
    for site, leaf in intervention.add.items():
        if site not in intervention.gate:
            raise ConfigError(unknown("site", site, intervention.gate))
        ranks[site] = row_rank(site)
        if np.ndim(leaf) not in (ranks[site], ranks[site] + 1):
            raise ConfigError(
                f"direction of {site!r} has shape {np.shape(leaf)}; it must have {ranks[site]} axes that "
                "broadcast to one row of the activation, or one of rows before them"
            )
    return dataclasses.replace(acting, add=directions_in_window(intervention, t, ranks))


def stage_inputs(stage: Stage, stream: Stream, train: bool) -> tuple[tuple, tuple]:
    """Arguments of a stage's module and the skip stack that is left."""
    if stage.op != "block":
        return (stream.h,), stream.skips
    skip = stream.skips[-1] if stage.pop else None
    return (stream.h, stream.embeddings, skip, train), stream.skips[:-1] if stage.pop else stream.skips


def next_stream(stage: Stage, h: Array, skips: tuple, embeddings: blocks.Embeddings) -> Stream:
    """The stream after a stage whose output is `h`."""
    return Stream(h, (*skips, h) if stage.push else skips, embeddings)


def run_stage(
    config: UNetConfig,
    stage: Stage,
    params: PyTree,
    intervention: Intervention,
    stream: Stream,
    *,
    capture: tuple[str, ...] = (),
    mode: Mode = EVALUATION,
) -> tuple[Stream, Mapping[str, Mapping[str, Any]]]:
    """One step of the fold.

    Args:
      intervention: already resolved by `at_timesteps`; leaves per row or shared.
      capture: collections to return, of `sites`, `attention`, `patterns` and `streams`.
    Returns:
      the next stream, and collection -> site -> captured value.
    """
    inputs, skips = stage_inputs(stage, stream, mode.dropout_key is not None)
    layer, of_layer = module(config, stage, mode.dtype), params.get(stage.name, {})
    if stage.pop and isinstance(stream.skips[-1], PrecomputedSkip):
        division = _division(config, of_layer, stream.h.shape[-1])
        layer = layer.clone(first_groups=division.together // division.depth)
        of_layer = params_without_skip(of_layer, division)
    variables = {"params": of_layer} | _variables(stage, intervention)
    rngs = {} if mode.dropout_key is None else {"dropout": mode.dropout_key}
    with jax.default_matmul_precision(devices.precision()):
        h, sown = layer.apply(variables, *inputs, mutable=list(capture), rngs=rngs)
    captured = {name: to_sites(stage, name, sown.get(name, {})) for name in capture}
    if STREAMS in captured:
        captured[STREAMS] = {stage.name: h}
    return next_stream(stage, h, skips, stream.embeddings), captured


def can_precompute_skip(config: UNetConfig, stage: Stage, params: PyTree, channels: int) -> bool:
    """Whether a stage computes something of its skip without the stream: the skip has a group of
    channels of its own, and a projection (without one it is added to the result channel by channel).

    Args:
      channels: of the stream.
    """
    of_layer = params[stage.name]
    all_channels = of_layer["norm1"]["scale"].shape[0]
    return "shortcut" in of_layer and _division(config, of_layer, channels).together < all_channels


def precompute_skip(
    config: UNetConfig,
    stage: Stage,
    params: PyTree,
    intervention: Intervention,
    skip: Features,
    channels: int,
) -> PrecomputedSkip:
    """What a stage computes of the skip that it takes, after its gate, without the stream.

    `run_stage` takes it, for as many rows as the stream has, in place of the skip.

    Args:
      intervention: as in `run_stage`, leaves for the rows of `skip`.
      channels: of the stream.
    """
    of_layer = params[stage.name]
    gates = {
        name: values["skip"] for name, values in _variables(stage, intervention).items() if "skip" in values
    }
    with jax.default_matmul_precision(devices.precision()):
        gated = Gate(name="skip").apply(gates, skip)
        division = _division(config, of_layer, channels)
        return precompute(of_layer, gated, division, config.norm_eps, config.activation)


def _division(config: UNetConfig, params: PyTree, stream: int) -> Division:
    """The division of a block's channels, `stream` of them those of the stream."""
    skip = params["norm1"]["scale"].shape[0] - stream
    return divide(stream, skip, config.norm_groups)


def _variables(stage: Stage, intervention: Intervention) -> dict[str, dict[str, dict]]:
    """The collections of one stage's module."""
    return {
        collection: _of_stage(stage, collection, getattr(intervention, collection))
        for collection in (*COLLECTIONS, *NAMED_COLLECTIONS)
    }


def _of_stage(stage: Stage, collection: str, leaves: Mapping[str, AnyArray]) -> dict[str, dict]:
    """Site -> leaf, as the nested collection of one stage's module."""
    variables = {}
    for site, leaf in leaves.items():
        if site_stage(site) == stage.name:
            variables[MODULE_OF_HEADS.get(collection, site_type(site))] = {"value": leaf}
    return variables


def to_sites(stage: Stage, collection: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The nested collection of one stage's module as site -> leaf; sown values come in tuples of one."""
    if collection in (blocks.ATTENTION, blocks.PATTERNS):  # sown by the attention itself
        return {f"{stage.name}.head": variables["value"][0]} if variables else {}
    sites = {}
    for name, variable in variables.items():
        word = "head" if name == MODULE_OF_HEADS.get(collection) else name
        sites[f"{stage.name}.{word}"] = variable["value"][0] if collection == CAPTURED else variable["value"]
    return sites
