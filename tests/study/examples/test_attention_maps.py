"""Attention maps made small keep where a head looks."""

import numpy as np

from mechdiff.study.examples import attention_maps


def test_maps_keep_where_a_head_looks():
    small = attention_maps.as_bytes(np.eye(4) / 2, 32)
    assert small.shape == (32, 32) and small[0, 0] == 255 and small[0, -1] == 0
    assert attention_maps.as_bytes(np.full((64, 64), 1 / 64), 32).min() == 255


def test_there_are_maps_of_every_head(examined, shown):
    assert set(shown["head"].values) == {
        component.name
        for component in examined[0].denoiser.components()
        if component.component_type == "head"
    }
