"""What leaving a component out changes in the clean picture that a network predicts.

Definitions are ours (how arXiv 2506.17237 assigned its eight mechanisms is not known). With x0hat the clean
picture that the network's output implies (`diffusion.predict_x0`, cut to [-1, 1]), the effect of component n
on target f (`metrics.targets`), per level and image, common random numbers in both arms, is
  E_f(n) = |f(x0hat) - f(x0hat under do n)|^2 / Var f,
  Var f  = E |f(x0) - E f(x0)|^2 over the pictures themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff import stats
from mechdiff.analysis.roles import image_features
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.process import predict_x0
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.sweeps.execution.engine import Engine, PassOutputs

Effects = Float[np.ndarray, "component target"]


@dataclass(frozen=True)
class Shift:
    """A reduction of the engine: squared distance of every target from that of the unchanged prediction, and
    of that from the picture's own. `own` are masks or None, `shared` probes as arrays or None."""

    parts: tuple[str, ...] = ()

    def __call__(
        self, seen: PassOutputs
    ) -> tuple[Float[Array, "n batch target"], Float[Array, "batch target"]]:
        read = lambda x: image_features.features(x, seen.own, self.parts, seen.shared)
        clean = read(mean_images(seen, seen.clean))
        return _distance(read(mean_images(seen, seen.eps)), clean), _distance(clean, read(seen.x0))


def role_effects(
    denoiser: Denoiser,
    stacked: Intervention,
    names: Sequence[str],
    images: Images,
    timesteps: Sequence[int],
    key: PRNGKey,
    *,
    masks: Float[np.ndarray, "image parts side side"] | None = None,
    parts: Sequence[str] = (),
    probes: Mapping[str, PyTree] | None = None,
    engine: Engine | None = None,
) -> xr.Dataset:
    """E_f of every intervention of a stack.

    Args:
      stacked, names: as `leave_one_out` or `matched_sets` gives them.
      images: in [-1, 1]; at least 2.
      masks, parts: of the same images, `data.synthetic.PARTS`; without them there are no targets `part:`.
      probes: of `probes.as_arrays`; without them there are no targets `factor:`.
      engine: of the subject, to keep its programs.
    Returns:
      Dataset with `effect`, dims `component, target, t, image`, and `error`, dims `target, t, image`: how far
      the unchanged prediction is from the picture, in the same units. Targets that don't vary are left out.
    Raises:
      ConfigError: pictures that 4x4 cells do not divide, or fewer than 2.
    """
    stats.intervals.check_units(len(images))
    image_features.image_feature_names(denoiser.unet.image_size)  # may refuse
    images, index = np.asarray(images, np.float32), np.arange(len(images))
    own = None if masks is None else np.asarray(masks, np.float32)
    shared = None if probes is None else dict(probes)
    found = feature_variances(images, own, tuple(parts), shared)
    variance = np.array([value for value, _ in found.values()])
    varies = np.flatnonzero(variance > 1e-9)
    engine = engine or Engine(denoiser.unet, denoiser.schedule, denoiser.params)
    reduce = Shift(tuple(parts))
    levels = [
        engine.reduce(stacked, images, index, int(t), key, reduce, own, shared) for t in np.asarray(timesteps)
    ]
    scaled = lambda a: a[..., varies] / variance[varies]
    effect = np.stack([scaled(changed) for changed, _ in levels])  # t, component, image, target
    error = np.stack([scaled(clean) for _, clean in levels])
    return xr.Dataset(
        {
            "effect": (
                ("component", "target", "t", "image"),
                effect.transpose(1, 3, 0, 2).astype(np.float32),
            ),
            "error": (("target", "t", "image"), error.transpose(2, 0, 1).astype(np.float32)),
        },
        coords={
            "component": list(names),
            "target": [list(found)[i] for i in varies],
            "t": np.asarray(timesteps, np.int32),
            "image": index,
            "log_snr": ("t", np.asarray(denoiser.schedule.log_snr)[np.asarray(timesteps)]),
            "variance": ("target", variance[varies]),
        },
        attrs={"denoiser": denoiser.name},
    )


def feature_variances(
    images: Images, masks=None, parts: tuple[str, ...] = (), probes: Mapping[str, PyTree] | None = None
) -> dict[str, tuple[float, int]]:
    """Var f over pictures, all numbers of a target together, and how many numbers it has; sorted by name."""
    read = jax.jit(image_features.features, static_argnames="parts")(
        images, masks, parts=parts, probes=probes
    )
    spread = lambda f: float(np.var(np.asarray(f, np.float64), axis=0).sum())
    return {name: (spread(f), f.shape[-1]) for name, f in sorted(read.items())}


def mean_effects(data: xr.Dataset) -> Effects:
    """E_f averaged over levels and images."""
    return data["effect"].mean(("t", "image")).transpose("component", "target").values.astype(np.float64)


def mean_images(seen: PassOutputs, eps: Array) -> Array:
    """The clean pictures that predicted noise implies, cut to their range, as samplers do."""
    flat = eps.reshape(-1, *eps.shape[-3:])
    x_t = jnp.broadcast_to(seen.x_t, eps.shape).reshape(flat.shape)
    x0 = predict_x0(seen.schedule, x_t, jnp.full(len(flat), seen.t), flat)
    return jnp.clip(x0, -1, 1).reshape(eps.shape)


def _distance(one: Mapping[str, Array], other: Mapping[str, Array]) -> Float[Array, "*rows target"]:
    # By name: dicts come back sorted from a compiled program.
    return jnp.stack([((one[name] - other[name]) ** 2).sum(-1) for name in sorted(other)], axis=-1)
