"""The claim about roles of heads, on made-up results whose truth is known."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from reference.made_networks import IMAGES, NAMES, answers_of, network

from mechdiff.analysis.roles import matching
from mechdiff.core.errors import CheckpointError
from mechdiff.study.claims import attention


def with_roles(item, place, role):
    """`item` whose heads, in the order `place`, move a target each and have the role `role(i)`."""
    rng = np.random.default_rng([item.seed, len(item.data)])
    values = np.eye(6)[place] + 0.1 * rng.standard_normal((6, 6))
    named = ("component", [role(i) for i in place])
    data = xr.Dataset(
        {"selectivity": (("component", "target"), values), "role": named},
        coords={"component": NAMES[6:], "target": list("abcdef")},
    )
    heads = item.attention["entropy"].values.mean(axis=(1, 2))
    statistics = {
        name: (("head", "t", "image"), heads[place][:, None, None] * np.ones((6, 4, IMAGES)))
        for name in matching.STATISTICS
    }
    return dataclasses.replace(item, roles=data, attention=item.attention.assign(statistics))


@pytest.mark.parametrize(
    "role, agree, verdict",
    [
        (lambda i: "abcdef"[i], True, "supported"),
        (
            lambda i: matching.UNASSIGNED,
            True,
            "undecided",
        ),  # alike in every seed, but nothing above the nulls
        (lambda i: "abcdef"[i], False, "undecided"),
    ],
)
def test_roles_take_both_selectivity_and_agreement_between_seeds(role, agree, verdict):
    made, rng = [], np.random.default_rng(0)
    for data in ("celeba", "synthetic"):
        for seed in range(5):
            single = network(data, seed, np.full(12, 0.3), 0.2 + 0.1 * np.arange(6))
            whole = with_roles(single, rng.permutation(6), role)
            if not agree:  # attention no longer says which head does what
                names = ("component", "target")
                mixed = rng.permutation(whole.roles["selectivity"].values)
                whole = dataclasses.replace(whole, roles=whole.roles.assign(selectivity=(names, mixed)))
            made.append(whole)
    answer = answers_of(made)["roles"]
    assert answer.verdict == verdict, answer
    if agree:
        assert answer.estimate > 0.5 and answer.interval[0] > 0.3
    assert "of 6 heads" in answer.because


def test_claims_on_attention_say_what_they_counted_and_what_is_missing():
    made = []
    for data in ("celeba", "synthetic"):
        for seed in range(3):
            single = network(data, seed, np.full(12, 0.3), 0.2 + 0.1 * np.arange(6))
            whole = with_roles(single, np.arange(6), lambda i: "abcdef"[i])
            made.append(dataclasses.replace(whole, roles=whole.roles.assign_coords(image=np.arange(2))))
    answers = answers_of(made)
    assert answers["roles"].n_images == 2 and answers["divergence"].n_images == IMAGES
    missing = made[0].attention.copy(deep=True)
    missing["entropy"][0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="attention of 'celeba-0': 1 entropies are missing"):
        attention.divergence([dataclasses.replace(made[0], attention=missing), *made[1:]])
    fewer = answers_of(made[1:])  # relabeling errs where the fewer scatter more
    for name in ("divergence", "variation"):
        assert "2 networks of CelebA and 3 of synthetic faces" in fewer[name].because
        assert "train equally many" not in answers[name].because
