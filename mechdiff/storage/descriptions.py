"""Descriptions of labeled results: units and a long name of every variable, and how it was made.

The one place for all results: `labelled` adds these where results are written.
"""

import functools

import xarray as xr

from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.storage import manifest

LOSS = "mean squared error of the predicted noise"
REPLICATES = "images (people where they are known)"
FLIPS = f"two-sided sign flips of {REPLICATES}"
POINTS = "percentage points"


def _intervals(name: str, meaning: str, unit: str) -> dict[str, tuple[str, str]]:
    """A quantity and the ends of its interval."""
    end = f"end of the 95 % interval over {REPLICATES}: {meaning}"
    return {
        name: (unit, meaning),
        f"{name}_low": (unit, f"lower {end}"),
        f"{name}_high": (unit, f"upper {end}"),
    }


# variable -> its unit and its long name. "1" is none: images are in [-1, 1], their differences have no unit.
NAMES = {
    "loss": ("1", f"{LOSS} under the intervention"),
    "clean_loss": ("1", f"{LOSS} without intervention"),
    "change": ("1", "mean squared change of the prediction by the intervention"),
    **_intervals(
        "delta_loss", "relative loss increase 100 (L(do) / L - 1) by the ablation at this timestep", "%"
    ),
    **_intervals("pooled_delta_loss", "relative loss increase by the ablation, mean over timesteps", "%"),
    "delta_loss_p": ("1", f"p of the loss increase: {FLIPS}, max-T over components and timesteps"),
    "pooled_delta_loss_p": ("1", f"p of the pooled relative loss increase: {FLIPS}, max-T over components"),
    "delta_loss_n": ("1", f"number of {REPLICATES} that intervals and p values are over"),
    **_intervals(
        "difference", "change of the relative loss increase, last - first, at this timestep", POINTS
    ),
    **_intervals("pooled_difference", "change of the pooled relative loss increase, last - first", POINTS),
    "difference_p": ("1", f"p of the change at this timestep: {FLIPS}, max-T over components and timesteps"),
    "pooled_difference_p": ("1", f"p of the change: {FLIPS}, Holm over components"),
    "contribution": ("%", "contribution of an image to the pooled relative loss increase"),
    "model": ("", "name of the model"),
    "score": ("1", "loss change of an ablation as its gradient predicts it"),
    "first": ("1", "first-order part of the score"),
    "second": ("1", "second-order part of the score"),
    "without_a": ("1", "loss change when a is ablated"),
    "without_b": ("1", "loss change when b is ablated"),
    "without_both": ("1", "loss change when a and b are ablated"),
    "interaction": ("1", "interaction of a and b, L(ab) - L(a) - L(b) + L; positive: redundant"),
    "curvature": ("1", "second derivative of the loss by the gates of a and b"),
    "set_distance": (
        "1",
        "squared energy distance between the sets of changed and of clean samples, without an interval",
    ),
    "tokens": ("1", "positions that the head attends over"),
    "entropy": ("nat", "entropy of the attention pattern"),
    "normalized_entropy": ("1", "entropy of the attention pattern over that of a uniform one, H / ln Nk"),
    "t": ("1", "timestep"),
    "log_snr": ("nat", "log of the signal-to-noise ratio"),
    "image": ("1", "number of the image"),
    "sample": ("1", "number of the sample"),
    "component": ("", "name of the component"),
    "component_type": ("", "type of the component: residual branch, head, skip, time injection, ..."),
    "ablation": ("", "what the component is replaced by"),
    "head": ("", "name of the attention head"),
    "resolution": ("pixel", "height of the component's feature map"),
    "depth": ("1", "place of the component in the order of execution"),
    "effective_keys": ("1", "effective number of keys, exp(entropy)"),
    "mutual_information": ("nat", "mutual information of queries and keys"),
    "identity_mass": ("1", "mean weight of a position on itself"),
    "temperature": ("1", "factor of the temperature of attention"),
    "gate": ("1", "factor of the component's activation"),
    "member": ("1", "whether the component is in the circuit"),
    "untouched": ("1", "samples without intervention, bytes"),
    "ablated": ("1", "samples from equal noise with the component replaced by zero, bytes"),
    "strongest": ("1", "images on which the component's activation is largest, bytes"),
    "strongest_image": ("1", "their numbers among the scored images"),
    "pattern": ("1", "attention map, bytes; 255 is its own largest weight"),
    "person": ("", "number of the person in the image"),
}

# Names that mean something else where a result has one of these dimensions.
OF_DIMENSION = {
    "head": {"distance": ("side", "mean attended distance, in sides of the feature map")},
    "window": {
        "low": ("1", "first timestep of the window"),
        "high": ("1", "timestep after the last of the window"),
        "distance": ("1", "root mean square change of a sample's pixels"),
    },
    "pair": {
        "estimate": ("%", "interaction in % of the clean loss, mean over timesteps"),
        "low": ("%", f"lower end of its 95 % interval over {REPLICATES}"),
        "high": ("%", f"upper end of its 95 % interval over {REPLICATES}"),
        "score": ("%", "interaction as second derivatives predict it, mean over timesteps"),
        "p": ("1", f"p of the interaction: {FLIPS}, corrected over pairs"),
        "single_a": ("%", "relative loss increase when a is ablated"),
        "single_b": ("%", "relative loss increase when b is ablated"),
        "joint": ("%", "relative loss increase when both are ablated"),
        "strength": ("1", "size of the interaction relative to the effect that it concerns"),
        "strength_low": ("1", f"lower end of its 95 % interval over {REPLICATES}"),
        "strength_high": ("1", f"upper end of its 95 % interval over {REPLICATES}"),
        "audited": ("1", "whether the pair was drawn at random"),
    },
    "factor": {
        "moved": ("1", "share of the way to the other face that the component carries"),
        "along": ("1", "change of the prediction along the way to the other face, mean over pixels"),
        "distance": ("1", "squared distance of the two predictions, mean over pixels"),
    },
    "target": {
        "effect": ("1", "squared change of the target by the ablation, in variances of the target"),
        "error": ("1", "squared error of the target without ablation, in variances of the target"),
        "variance": ("1", "variance of the target over images"),
    },
}


def described(dataset: xr.Dataset) -> xr.Dataset:
    """`dataset` with units and long names where it has none, and with version and commit as attributes.

    Variables that this module doesn't know get their name with blanks as long name, and no unit.

    Example:
      >>> described(xr.Dataset({"clean_loss": ("t", [0.1])}))["clean_loss"].attrs["units"]
      '1'
      >>> described(xr.Dataset({"low": ("pair", [0.1])}))["low"].attrs["units"]  # else a timestep
      '%'
    """
    dataset, names = dataset.copy(), dict(NAMES)
    for dimension in dataset.sizes:
        names |= OF_DIMENSION.get(str(dimension), {})
    for name, variable in dataset.variables.items():
        units, long_name = names.get(str(name), ("", str(name).replace("_", " ")))
        attrs = {"long_name": long_name} | ({"units": units} if units else {})
        variable.attrs = attrs | variable.attrs
    dataset.attrs = _provenance() | dataset.attrs
    return dataset


@functools.cache
def _provenance() -> dict[str, str | int]:
    made_by = {"mechdiff_version": manifest.package_version("mechdiff"), "commit": manifest.commit()}
    return {"numerics_version": NUMERICS_VERSION} | {name: text for name, text in made_by.items() if text}
