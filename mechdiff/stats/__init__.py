"""Intervals, tests and corrections for effects measured on the same images.

Everything is float64 NumPy and vectorized: the last axis holds the units (images, or training seeds), all
axes before it are cells (components, timesteps, ...) treated in one matrix product. Units are what is
resampled or flipped, *jointly* in all cells, which keeps the dependence between cells. NaN in a cell makes
its results NaN and touches no other cell; corrections refuse it.
"""

from mechdiff.stats.clusters import Units, bootstrap_units, kish, units_from, units_of, weighted_mean
from mechdiff.stats.concentration import effective_interval, effective_number
from mechdiff.stats.finite import finite_population_interval
from mechdiff.stats.intervals import (
    Interval,
    bootstrap,
    bootstrap_mean,
    expanded_level,
    hierarchical_bootstrap,
    percent_increase,
    ratio_effect,
    resampled_variance,
    satterthwaite,
    student_mean,
)
from mechdiff.stats.jackknife import jackknife_error, jackknife_interval, pseudo_values, ratio_influence
from mechdiff.stats.quantiles import quantile_interval
from mechdiff.stats.sequential import confidence_sequence, skewed_sequence
from mechdiff.stats.shares import share_interval
from mechdiff.stats.significance import (
    ALPHA,
    FLIPS,
    benjamini_hochberg,
    equivalence_test,
    holm,
    max_t,
    permutation_test,
)
from mechdiff.stats.sizes import rms_interval, size_interval
from mechdiff.stats.weights import (
    MIN_RELIABLE,
    bootstrap_weights,
    equal_weights,
    few_images,
    hierarchical_weights,
    random_orders,
)

__all__ = [
    "ALPHA",
    "FLIPS",
    "MIN_RELIABLE",
    "Interval",
    "Units",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_mean",
    "bootstrap_units",
    "bootstrap_weights",
    "confidence_sequence",
    "effective_interval",
    "effective_number",
    "equal_weights",
    "equivalence_test",
    "expanded_level",
    "few_images",
    "finite_population_interval",
    "hierarchical_bootstrap",
    "hierarchical_weights",
    "holm",
    "jackknife_error",
    "jackknife_interval",
    "kish",
    "max_t",
    "percent_increase",
    "permutation_test",
    "pseudo_values",
    "quantile_interval",
    "random_orders",
    "ratio_effect",
    "ratio_influence",
    "resampled_variance",
    "rms_interval",
    "satterthwaite",
    "share_interval",
    "size_interval",
    "skewed_sequence",
    "student_mean",
    "units_from",
    "units_of",
    "weighted_mean",
]
