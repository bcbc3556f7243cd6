"""Scaling curves: the loss as a function of a component's gate value.

A gate of 1 changes nothing, 0 replaces the component, 2 doubles its difference from the replacement. A curve
that is not monotonic, or that is lower near 1, shows what the two ends can't.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float32

from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.sweeps.coords import component_coords
from mechdiff.sweeps.execution.provenance import provenance
from mechdiff.sweeps.in_memory import sweep_in_memory

GATE_VALUES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def as_gates(values: Sequence[float]) -> Float32[np.ndarray, " gates"]:
    """The values of a gate as an array.

    Raises:
      ConfigError: none, one that is not finite, or one twice.
    """
    with np.errstate(over="ignore"):  # refused below, as infinite
        gates = np.asarray(values, np.float32)
    if gates.size == 0 or not np.isfinite(gates).all():
        written = np.asarray(values, np.float64).tolist()
        raise ConfigError(
            f"gates {written}: give one or more finite numbers of float32, such as {GATE_VALUES}"
        )
    ranges.distinct("gates", gates.tolist())
    return gates


def scaling_curves(
    denoiser: Examinable,
    eval_set: EvalSet,
    chosen: Sequence[Component] | None = None,
    gate_values: Sequence[float] = GATE_VALUES,
    *,
    ablation: str = "zero",
    replacements: PyTree = None,
    block: int = 16,
    folder: Path | None = None,
) -> xr.Dataset:
    """Denoising loss of every image with the gate of one component at every value, in one compiled program.

    Args:
      eval_set: images in [-1, 1]; image i has the noise of `image_noise(key, i)`, as in
        `ablation.ablation_sweep`.
      chosen: components; all of the network if None.
      gate_values: finite.
      ablation, replacements: what takes the place of the share that is scaled down, as in
        `ablation.ablation_sweep`: for ablations other than `zero` site -> `(timesteps, *site)` or a source.
      block: images at once.
      folder: losses are kept here too, so that an interrupted run can go on; None: nothing is kept on disk.
    Returns:
      Dataset with `loss` and `change`, dims `gate, component, t, image`, and `clean_loss`, dims `t, image`.
    Raises:
      ConfigError: no gate values, ones that are not finite or not different, or an ablation without its
        replacements.
    """
    values, chosen = as_gates(gate_values), chosen_components(denoiser, chosen)
    ablated = leave_one_out(denoiser.identity, chosen)[1]

    def scaled(gate):
        # Gates are 0 where a component is and 1 elsewhere: the values take the place of the zeros.
        return (gate + (1 - gate) * values[:, None, None]).reshape(-1, gate.shape[-1])

    stacked = dataclasses.replace(ablated, gate={site: scaled(gate) for site, gate in ablated.gate.items()})
    losses = sweep_in_memory(
        denoiser,
        eval_set,
        stacked,
        ablation=ablation,
        replacements=replacements,
        block=block,
        folder=folder,
    )
    shape = (len(values), len(chosen), *losses.loss.shape[1:])
    dims = ("gate", "component", "t", "image")
    coords = component_coords(denoiser, chosen, eval_set.timesteps, eval_set.count)
    return xr.Dataset(
        {
            "loss": (dims, losses.loss.reshape(shape)),
            "change": (dims, losses.change.reshape(shape)),
            "clean_loss": (dims[2:], losses.clean_loss),
        },
        coords={"gate": values, **coords},
        attrs={**provenance(denoiser), "ablation": ablation},
    )
