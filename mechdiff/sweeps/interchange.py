"""Which factor does a component carry? Factor-pair interchange interventions.

A factor pair (x, x') of synthetic faces differs in one factor alone. With the same noise and timestep, one
component's activation on x is replaced by that on x', everything else being left to x. With eps, eps' the
predictions on x and x', and eps_do that on x with the component of x',
  moved = <eps_do - eps, eps' - eps> / |eps' - eps|^2,
the fraction of the way from one prediction to the other that this component alone takes: 0 if it carries
nothing of the factor, 1 if all of it passes through there. It may be negative, and need not sum to 1 over
components, which stand in for each other and act one after another. The formula is ours; interchange is that
of Geiger et al. 2021 (arXiv 2106.02997).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff import stats
from mechdiff.core import keys
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.data.synthetic import FACTORS, factor_pair
from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.ablation import component_coords
from mechdiff.sweeps.activations import activations
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.passes import PassOutputs

ROUNDING = 1e-12  # mean squared distance of two predictions that float32 rounding can make


def factor_pairs(
    key: PRNGKey, factor: str, count: int, size: int, complexity: int = 4
) -> tuple[Float[np.ndarray, "count size size 3"], Float[np.ndarray, "count size size 3"]]:
    """Faces 0 to `count - 1` of a key and their twins, which differ in `factor` alone; see
    `data.synthetic.factor_pair`."""
    pairs = [factor_pair(key, index, factor, size, complexity) for index in range(count)]
    first, second = zip(*((one.image, two.image) for one, two in pairs))
    return np.stack(first), np.stack(second)


def transfer_fraction(outputs: PassOutputs) -> tuple[tuple[Array, Array], Array]:
    """For each component and image <eps_do - eps, eps' - eps> and |eps_do - eps|^2, and for each image
    |eps' - eps|^2, as means over pixels. `PassOutputs.per_image` is eps'."""
    way, change = outputs.per_image - outputs.clean, outputs.eps - outputs.clean
    mean = lambda x: jnp.mean(x, axis=(-3, -2, -1))
    return (mean(change * way), mean(change * change)), mean(way * way)


@jax.jit
def _predict(denoiser: Examinable, x_t: Images, t: Int[Array, " batch"], condition: PyTree) -> Images:
    return denoiser.predict(denoiser.identity, x_t, t, condition)


def interchange_effects(
    denoiser: Examinable,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    *,
    factors: Sequence[str] = FACTORS,
    pairs: int = 16,
    chosen: Sequence[Component] | None = None,
    complexity: int = 4,
    block: int = 16,
    condition: PyTree = None,
) -> xr.Dataset:
    """How much of each factor every component carries, at each noise level, pair by pair.

    Args:
      key: of the faces and of their noise. Pair i has the noise of index i under every factor.
      factors: of `data.synthetic`; each has pairs of its own, of the same first faces.
      pairs: of each factor.
      chosen: components; all of the network if None.
      complexity: rung 0 to 4 of the ladder that the faces are drawn from.
      block: pairs at once.
      condition: what both faces of each pair are denoised under, leaves `(pairs, ...)`; None: nothing.
    Returns:
      Dataset with `moved` (see the module; NaN where the factor does not show), its numerator `along` and the
      squared `change`, dims `factor, component, t, image`; and `distance`, |eps' - eps|^2, dims `factor, t,
      image`. All but `moved` are means over pixels.
    Raises:
      ConfigError: an unknown factor, or no pairs.
    """
    for factor in factors:
        if factor not in FACTORS:
            raise ConfigError(unknown("factor", factor, FACTORS))
    if pairs < 1 or denoiser.image_shape[-1] != 3:
        raise ConfigError(f"pairs={pairs}: faces in color and at least one pair of them are needed")
    chosen = tuple(chosen or denoiser.components())
    engine = Engine(denoiser)
    faces, noise = keys.stream(key, "faces"), keys.stream(key, "noise")
    shape = (len(factors), len(chosen), len(timesteps), pairs)
    along, change = np.empty(shape, np.float32), np.empty(shape, np.float32)
    distance = np.empty((shape[0], *shape[2:]), np.float32)
    stacked = leave_one_out(denoiser.identity, chosen)[1]
    for row, factor in enumerate(factors):
        first, second = factor_pairs(faces, factor, pairs, denoiser.image_shape[0], complexity)
        for column, t in enumerate(timesteps):
            for start in range(0, pairs, block):
                where = slice(start, min(start + block, pairs))
                index = np.resize(np.arange(start, where.stop), min(block, pairs))
                told = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], condition)
                both = first[index], second[index], index
                (products, squares), ways = _block(engine, stacked, *both, int(t), noise, told)
                count = where.stop - start
                along[row, :, column, where] = products[:, :count]
                change[row, :, column, where] = squares[:, :count]
                distance[row, column, where] = ways[:count]
    dims = ("factor", "component", "t", "image")
    shows = np.where(distance > ROUNDING, distance, np.nan)[:, None]
    return xr.Dataset(
        {
            "moved": (dims, along / shows),
            "along": (dims, along),
            "change": (dims, change),
            "distance": (("factor", "t", "image"), distance),
        },
        coords={"factor": list(factors), **component_coords(denoiser, chosen, timesteps, pairs)},
        attrs={"denoiser": denoiser.name, "complexity": complexity},
    )


def _block(
    engine: Engine,
    stacked: Intervention,
    first: Images,
    second: Images,
    index: Int[np.ndarray, " batch"],
    t: int,
    key: PRNGKey,
    condition: PyTree,
):
    """What `transfer_fraction` gives for one block of pairs."""
    denoiser = engine.denoiser
    replacement = activations(denoiser, second, t, key, index, condition)
    at = jnp.full(len(index), t)
    x_t = q_sample(denoiser.schedule, second, at, image_noise(key, index, second.shape[1:]))
    other = _predict(denoiser, x_t, at, condition)
    from_second = dataclasses.replace(stacked, replacement=replacement)
    batch = EvalBatch(first, index, t, key, condition)
    return engine.reduce(from_second, batch, transfer_fraction, per_image=np.asarray(other))


def transfer_by_component(
    found: xr.Dataset, repeats: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[xr.DataArray, stats.Interval]:
    """The fraction of each factor that every component carries over all levels, with its interval over pairs.

    It is the ratio of sums, sum along / sum distance over timesteps and pairs, which pairs and levels that
    hardly show the factor can't upset. Estimates, dims `factor, component`, and the same with their bounds.

    Args:
      found: by `interchange_effects`; at least 2 pairs.
      repeats, seed, level: of the bootstrap over pairs.
    """
    along = found["along"].sum("t").transpose("factor", "component", "image").astype(np.float64)
    distance = found["distance"].sum("t").transpose("factor", "image").values.astype(np.float64)[:, None]

    def share(weights):
        below = distance @ weights.T
        return (along.values @ weights.T) / np.where(below > 0, below, np.nan)

    weights = stats.bootstrap_weights(along.sizes["image"], repeats, seed)
    interval = stats.bootstrap(share, weights, confidence, "percentile")
    return along.isel(image=0, drop=True).copy(data=interval.estimate), interval
