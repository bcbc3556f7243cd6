"""Effects of ablating a component on features of the predicted clean image.

Definitions are ours (how arXiv 2506.17237 assigned its eight mechanisms is not known). With x0hat the clean
image that the network's output implies (`process.predict_x0`, clipped to [-1, 1]), the effect of component n
on target f (`image_features`), per timestep and image, with common random numbers, is
  E_f(n) = |f(x0hat) - f(x0hat under do n)|^2 / Var f,
  Var f  = E |f(x0) - E f(x0)|^2 over the clean images x0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff import stats
from mechdiff.analysis.roles import image_features
from mechdiff.core.types import Images, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import predict_x0
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.passes import PassOutputs
from mechdiff.sweeps.execution.provenance import provenance, result_key, store

MIN_VARIANCE = 1e-9  # of a target: of gray images, colors vary by rounding alone
Effects = Float[np.ndarray, "component target"]


@dataclass(frozen=True)
class Shift:
    """Reduction of a pass: squared distance of every target from that of the clean prediction, and of the
    clean prediction's from the image's. `per_image` are masks or None, `shared` probes as arrays or None."""

    parts: tuple[str, ...] = ()

    def __call__(
        self, outputs: PassOutputs
    ) -> tuple[Float[Array, "n batch target"], Float[Array, "batch target"]]:
        def read(x):
            return image_features.features(x, outputs.per_image, self.parts, outputs.shared)

        clean, changed = read(mean_images(outputs, outputs.clean)), read(mean_images(outputs, outputs.eps))
        return _distance(changed, clean), _distance(clean, read(outputs.x0))


def role_effects(
    denoiser: Examinable,
    eval_set: EvalSet,
    stacked: Intervention,
    names: Sequence[str],
    *,
    masks: Float[np.ndarray, "image parts side side"] | None = None,
    parts: Sequence[str] = (),
    probes: Mapping[str, PyTree] | None = None,
    folder: Path | None = None,
) -> xr.Dataset:
    """E_f of every stacked intervention.

    Args:
      stacked, names: as `leave_one_out` or `matched_sets` gives them.
      eval_set: at least 2 images, crossed with the timesteps.
      masks, parts: of the same images, `data.synthetic.PARTS`; without them there are no targets `part:`.
      probes: of `probes.as_arrays`; without them there are no targets `factor:`.
      folder: distances are kept here too, so that an interrupted run can go on; None: nothing is kept on
        disk.

    Returns:
      Dataset with `effect`, dims `component, target, t, image`, and `error`, dims `target, t, image`: E_f of
      the clean prediction against the image. Targets that don't vary are left out.

    Raises:
      ConfigError: images that 4x4 cells do not divide, or fewer than 2.
    """
    images, timesteps = eval_set.images, eval_set.timesteps
    stats.weights.check_units(len(images))
    image_features.image_feature_names(*denoiser.image_shape[1:])  # may refuse
    images = np.asarray(images, np.float32)
    masks = None if masks is None else np.asarray(masks, np.float32)
    shared = None if probes is None else dict(probes)
    variances = feature_variances(images, masks, tuple(parts), shared)
    variance = np.array([value for value, _ in variances.values()])
    varies = np.flatnonzero(variance > MIN_VARIANCE)
    engine, reduction = Engine(denoiser), Shift(tuple(parts))

    def compute(piece: pieces.Piece) -> dict[str, np.ndarray]:
        batch = eval_set.batch(piece["t"].start)
        changed, clean = engine.reduce(stacked, batch, reduction, per_image=masks, shared=shared)
        return {"clean": clean[None], "changed": changed[None]}

    path = None
    if folder is not None:
        targets = digests.digest_arrays([stacked, masks, shared])
        path = store(folder, result_key(denoiser, eval_set, role_effects=targets, parts=list(parts)))
    empty = pieces.unfilled(
        {"clean": ("t", "image", "target"), "changed": ("t", "component", "image", "target")},
        {"t": len(timesteps), "component": len(names), "image": len(images), "target": len(variance)},
    )
    title = f"effects of components of {denoiser.name}"
    distances = pieces.filled(empty, pieces.singles(t=len(timesteps)), compute, path, title)
    coords = {
        "component": list(names),
        "target": [list(variances)[i] for i in varies],
        "t": np.asarray(timesteps, np.int32),
        "image": np.arange(len(images)),
        "log_snr": ("t", np.asarray(denoiser.schedule.log_snr)[np.asarray(timesteps)]),
        "variance": ("target", variance[varies]),
    }
    return xr.Dataset(
        _shares(**distances, varies=varies, variance=variance[varies]), coords, provenance(denoiser)
    )


def _shares(
    clean: Float[np.ndarray, "t image target"],
    changed: Float[np.ndarray, "t component image target"],
    varies: Int[np.ndarray, " varying"],
    variance: Float[np.ndarray, " varying"],
) -> dict:
    """`effect` and `error`: distances of `Shift` over the targets' variances."""
    effect, error = (distance[..., varies] / variance for distance in (changed, clean))
    return {
        "effect": (("component", "target", "t", "image"), effect.transpose(1, 3, 0, 2).astype(np.float32)),
        "error": (("target", "t", "image"), error.transpose(2, 0, 1).astype(np.float32)),
    }


def feature_variances(
    images: Images,
    masks: Float[np.ndarray, "image parts side side"] | None = None,
    parts: tuple[str, ...] = (),
    probes: Mapping[str, PyTree] | None = None,
) -> dict[str, tuple[float, int]]:
    """Var f over images, summed over the numbers of a target, and their count; sorted by name."""
    targets = jax.jit(image_features.features, static_argnames="parts")(
        images, masks, parts=parts, probes=probes
    )

    def spread(f):
        return float(np.var(np.asarray(f, np.float64), axis=0).sum())

    return {name: (spread(f), f.shape[-1]) for name, f in sorted(targets.items())}


def mean_effects(data: xr.Dataset) -> Effects:
    """E_f averaged over timesteps and images."""
    return data["effect"].mean(("t", "image")).transpose("component", "target").values.astype(np.float64)


def mean_images(outputs: PassOutputs, eps: Array) -> Array:
    """The clean images that predicted noise implies, clipped to [-1, 1], as samplers do."""
    flat = eps.reshape(-1, *eps.shape[-3:])
    x_t = jnp.broadcast_to(outputs.x_t, eps.shape).reshape(flat.shape)
    x0 = predict_x0(outputs.schedule, x_t, jnp.full(len(flat), outputs.t), flat)
    return jnp.clip(x0, -1, 1).reshape(eps.shape)


def _distance(first: Mapping[str, Array], second: Mapping[str, Array]) -> Float[Array, "*rows target"]:
    # By name: dicts come back sorted from a compiled program.
    return jnp.stack([((first[name] - second[name]) ** 2).sum(-1) for name in sorted(second)], axis=-1)
