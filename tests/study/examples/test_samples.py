"""Pairs of samples are those of the sampler itself."""

import dataclasses

import numpy as np

from mechdiff.data import to_bytes
from mechdiff.interventions.build import ablate
from mechdiff.study.examples import Sizes, samples
from mechdiff.sweeps.execution import drawing


def test_pairs_are_samples_of_the_untouched_and_of_the_ablated_network(examined, shown):
    denoiser, count = examined[0].denoiser, shown.sizes["sample"]
    name = str(shown["component"].values[-1])
    ablated = dataclasses.replace(denoiser, identity=ablate(denoiser.identity, [name]))
    key, kept = samples.initial_key(0), (shown["untouched"], shown["ablated"].sel(component=name))
    for acting, bytes_ in zip((denoiser, ablated), kept, strict=True):
        drawn = drawing.draw_samples(acting, key, count, Sizes().steps)
        assert np.abs(to_bytes(drawn).astype(int) - bytes_.values.astype(int)).max() <= 1  # of rounding
    assert (shown["untouched"] != shown["ablated"]).any()
