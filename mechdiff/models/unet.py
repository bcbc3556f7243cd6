"""The denoiser: a fold over named stages, and its pure facade.

A stage takes a `Stream` (activation, skip stack, embeddings of time and class) and returns the next one; it
can be entered with any number of rows, so a sweep can let the rows of an intervention join at the
stage where they begin to differ. Topology is in `stages`, how a stage runs in `stage_modules`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import Features, Images, PRNGKey, PyTree, Timesteps
from mechdiff.diffusion.process import to_eps
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.components import (
    Component,
    channel_group_ranges,
    component_ranges,
    site_stage,
    site_type,
)
from mechdiff.interventions.gates import COLLECTIONS
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models import blocks
from mechdiff.models.stage_modules import (
    EVALUATION,
    Mode,
    Stream,
    at_timesteps,
    enter,
    label_module,
    module,
    next_stream,
    run_stage,
    stage_inputs,
    time_mlp,
    to_sites,
)
from mechdiff.models.stages import stages


def apply_unet(
    config: UNetConfig,
    params: PyTree,
    intervention: Intervention,
    x_t: Images,
    t: Timesteps,
    *,
    condition: Any = None,
    mode: Mode = EVALUATION,
) -> Features:
    """The network's output under an intervention: the noise in `x_t` if `config.prediction` is `epsilon`.

    `denoise` is the same in units of noise for networks of any `prediction`.

    Args:
      params: as `init_unet` made them.
      intervention: `identity` of `init_unet` for the plain network; leaves may have a row axis.
      x_t: noisy images, NHWC float32.
      t: one integer timestep per row, in [0, T).
      condition: classes or images that it is conditioned on, see `conditions.resolve`.
      mode: types of layers and dropout, in training.

    Raises:
      ConfigError: an intervention at a site that the network does not have.
    """
    _check_sites(config, intervention)
    stream = enter(config, params, x_t, t, mode.dtype, condition)
    return _fold(config, params, at_timesteps(intervention, t), stream, (), mode)[0]


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
    condition: Any = None,
    capture: tuple[str, ...] = (),
) -> tuple[Features, dict[str, dict[str, Any]]]:
    """`apply_unet`, and what was captured on the way: collection -> site -> value.

    Args:
      capture: collections, as `run_stage` takes them; `streams` has the feature map that leaves each stage.
    """
    _check_sites(config, intervention)
    stream = enter(config, params, x_t, t, condition=condition)
    return _fold(config, params, at_timesteps(intervention, t), stream, capture, EVALUATION)


def _check_sites(config: UNetConfig, intervention: Intervention) -> None:
    """Refuses sites that the network does not have: stages would silently ignore a mistyped one."""
    shapes = init_shapes(config)[1]
    heads = {"pattern": shapes.temperature, "pattern_replacement": shapes.temperature}
    for field in (*COLLECTIONS, *heads):
        known = heads.get(field, getattr(shapes, field))
        for site in getattr(intervention, field):
            if site not in known:
                raise ConfigError(unknown("site", site, known))


def _fold(
    config: UNetConfig,
    params: PyTree,
    intervention: Intervention,
    stream: Stream,
    capture: tuple[str, ...],
    mode: Mode,
) -> tuple[Features, dict[str, dict[str, Any]]]:
    """All stages in order, with a separate dropout key for each."""
    captured: dict[str, dict[str, Any]] = {name: {} for name in capture}
    for i, stage in enumerate(stages(config)):
        key = None if mode.dropout_key is None else jax.random.fold_in(mode.dropout_key, i)
        of_stage = mode._replace(dropout_key=key)
        stream, values = run_stage(
            config, stage, params, intervention, stream, capture=capture, mode=of_stage
        )
        for name in capture:
            captured[name].update(values[name])
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
    time = time_mlp(config)
    params = {"time": time.init(keys[0], t)["params"]}
    temb, label = time.apply({"params": params["time"]}, t), None
    if config.takes_labels:
        label, module_of_labels = jnp.zeros_like(temb), label_module(config)
        if module_of_labels:
            params["class"] = module_of_labels.init(jax.random.fold_in(keys[0], 1), t)["params"]
    stream = Stream(x, (), blocks.Embeddings(temb, label))
    leaves: dict[str, dict[str, Array]] = {name: {} for name in COLLECTIONS}
    for stage, stage_key in zip(stages(config), keys[1:], strict=True):
        inputs, skips = stage_inputs(stage, stream, False)
        h, variables = module(config, stage).init_with_output(stage_key, *inputs)
        if variables.get("params"):
            params[stage.name] = variables["params"]
        for name in COLLECTIONS:
            leaves[name].update(to_sites(stage, name, variables.get(name, {})))
        stream = next_stream(stage, h, skips, stream.embeddings)
    return params, Intervention(**leaves, window=jnp.asarray(ALWAYS))


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
    depth = {stage.name: i for i, stage in enumerate(stages(config))}
    resolution = {stage.name: stage.resolution for stage in stages(config)}
    listed: list[Component] = []
    for site in sorted(shapes, key=lambda site: (depth[site_stage(site)], site)):
        owned = dict(component_ranges(site, shapes[site].shape[-1]))
        if channel_groups and site_type(site) in ("res", "skip"):
            owned |= channel_group_ranges(site, shapes[site].shape[-1], channel_groups)
        stage = site_stage(site)
        listed += [
            Component(name, site_type(site), site, index, depth[stage], resolution[stage])
            for name, index in owned.items()
        ]
    return tuple(listed)


def count_parameters(config: UNetConfig) -> int:
    """Number of parameters, by shape alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(init_shapes(config)[0]))
