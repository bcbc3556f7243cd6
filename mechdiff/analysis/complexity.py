"""Complexity of the circuits of networks trained on a data set.

arXiv 2506.17237 gives a ratio of 1.084 +- 0.008 of a measure that is not known; these are ours:
  circuit size     C(tau): components in the smallest circuit that reaches faithfulness tau, of .8, .9, .95
  effective        exp(entropy of the shares of |pooled relative loss increase|) (`stats.effective_number`)
  participation, rank   participation ratio and effective rank of activation covariance
  variance         of activations; depends on scale, the weakest
`study.claims.complexity` compares them between data sets.
"""

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.sweeps.channel_moments import Moments, covariance, effective_rank, participation_ratio, variance

Measure = Callable[[np.ndarray], np.ndarray]  # weights [m, image], rows summing to 1 -> value [m], above 0
TAUS = (0.8, 0.9, 0.95)
OF_COVARIANCE = {"participation": participation_ratio, "rank": effective_rank, "variance": variance}


def effective_components(sweep: xr.Dataset, ablation: str) -> Measure:
    """`effective` of a saved sweep, as a function of weights of images."""
    clean, loss = effects.losses(sweep, ablation)
    return lambda weights: stats.effective_number(effects.pooled_relative_increase(clean, loss, weights))


def site_values(moments_by_site: Mapping[str, Moments], name: str) -> dict[str, Float[np.ndarray, " t"]]:
    """One of `OF_COVARIANCE` for each site and timestep, with even weights of images."""

    def value(moments: Moments) -> np.ndarray:
        count = len(moments.rows)
        return OF_COVARIANCE[name](covariance(moments, stats.equal_weights(count)))[0]

    return {site: value(moments) for site, moments in moments_by_site.items()}
