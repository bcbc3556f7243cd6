"""How far relative loss increases move at every reduced precision, beside their sampling error.

`python -m experiments.benchmarks.precision --set=sweep.images=8 --set=sweep.timesteps=4 --workdir=runs/p`
Every shipped network, or those of `--models=a,b` (names or folders), is swept in float32 and in each
precision, on the same images under the same random numbers. On an accelerator its own products are used; on a
CPU, which has none but float32, the inputs of products are rounded as a card rounds them (see `_rounding`).
The table has, over components, the mean (bias) and the largest difference of the pooled relative loss
increase, in points, and the largest as a share of the half width of its 95 % interval over images; what a
sweep of that precision states of itself, its largest error at a timestep; and how many components, certain in
float32, are not so any more, are so with the other sign, or became certain.
Result: WORKDIR/precision.json; what is finished is not run again.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import xarray as xr
from absl import flags

from experiments import _launch, _opening
from experiments.benchmarks import _rounding
from mechdiff.analysis import effects
from mechdiff.core import devices
from mechdiff.core.config import ExperimentConfig, Precision, to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.models import shipped
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.sweeps import precision
from mechdiff.sweeps.ablation import ablation_sweep

MODELS = flags.DEFINE_list("models", None, "Names or folders of networks; all that are shipped if not given.")
PRECISIONS = flags.DEFINE_list("precisions", None, "Which; all that can be had here if not given.")
COLUMNS = {"bias": 9, "largest": 9, "share": 8, "stated": 8, "components": 11, "certain": 8}
COLUMNS |= {"lost": 5, "turned": 7, "gained": 7}


def compared(exact: effects.Effects, reduced: effects.Effects) -> dict[str, float | int]:
    """Differences of pooled relative loss increases, in points and as a share of half widths of intervals;
    and how many components are certain in one of both alone, or in both with another sign."""
    difference = reduced.pooled.estimate - exact.pooled.estimate
    half_width = (exact.pooled.high - exact.pooled.low) / 2
    share = np.abs(difference)[half_width > 0] / half_width[half_width > 0]
    before, after = certain_signs(exact), certain_signs(reduced)
    return {
        "bias": float(difference.mean()),
        "largest": float(np.abs(difference).max()),
        "share": float(share.max()),
        "stated": float(reduced.precision_error.max()),
        "components": len(before),
        "certain": int((before != 0).sum()),
        "lost": int(((before != 0) & (after == 0)).sum()),
        "turned": int((before * after < 0).sum()),
        "gained": int(((before == 0) & (after != 0)).sum()),
    }


def certain_signs(measured: effects.Effects) -> np.ndarray:
    """Of pooled relative loss increases whose 95 % interval has zero outside, else 0; `[component]`."""
    return np.where(measured.pooled.low > 0, 1, np.where(measured.pooled.high < 0, -1, 0))


@contextmanager
def multiplying(setting: Precision) -> Iterator[Precision]:
    """Products of a precision: the device's own, or on a CPU played by rounding what enters them. Yields what
    `sweep.precision` is then."""
    if jax.default_backend() != "cpu":
        yield setting
        return
    with _rounding.rounding_products(setting):
        yield "float32"


def stating_its_error(reduced: xr.Dataset, exact: xr.Dataset, setting: Precision, block: int) -> xr.Dataset:
    """A sweep of rounded products with what a sweep of that precision would state of itself."""
    checked = precision.subset(reduced.sizes["t"], min(block, reduced.sizes["image"]))

    def checked_losses(sweep: xr.Dataset) -> list[precision.Losses]:
        sweep = sweep.sel(ablation="zero").isel(image=slice(checked.images))
        swept = [sweep.isel(t=t_index) for t_index in checked.t_indices]
        return [(at_t["loss"].values, at_t["clean_loss"].values) for at_t in swept]

    error = precision.largest_error(checked_losses(reduced), checked_losses(exact))
    named = reduced.assign(precision_error=(("ablation", "component"), error[None]))
    return named.assign_attrs(precision.facts(setting, checked))


def main(config, workdir):
    use_all_cores()
    config = dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, ablations=("zero",)))
    models = MODELS.value or list(shipped.names())
    on_cpu = jax.default_backend() == "cpu"
    known = [name for name in get_args(Precision) if name != "float32" and (on_cpu or devices.acts(name))]
    settings = PRECISIONS.value or known
    for name in settings:
        if name not in known:
            raise ConfigError(unknown("precision", name, known))
    print(f"{'network':40s}{'precision':>10s}" + "".join(f"{name:>{w}s}" for name, w in COLUMNS.items()))
    opened = {name: _opening.opened(config, workdir, name, None) for name in models}
    exact = {name: _swept(config, workdir, network, "float32") for name, network in opened.items()}
    rows = {}
    for setting in settings:  # outermost: a program serves all networks of its shape
        with multiplying(setting) as own:
            for name, network in opened.items():
                reduced = _swept(config, workdir, network, own, folder=setting)
                if "precision_error" not in reduced:
                    reduced = stating_its_error(reduced, exact[name], setting, config.sweep.image_block)
                measures = (effects.measure(sweep, "zero") for sweep in (exact[name], reduced))
                row = rows[f"{name}, {setting}"] = compared(*measures)
                print(f"{name[-40:]:40s}{setting:>10s}" + _in_columns(row), flush=True)
        played = {"by": "rounding inputs of products" if on_cpu else "the device"}
        files.write_json(
            workdir / "precision.json",
            {"rows": rows, "precision": played, "manifest": run_manifest(to_dict(config), models=models)},
        )
    return rows


def _swept(
    config: ExperimentConfig,
    workdir: Path,
    opened: _opening.Opened,
    setting: Precision,
    folder: str = "float32",
) -> xr.Dataset:
    sweep = dataclasses.replace(config.sweep, precision=setting)
    return ablation_sweep(opened.denoiser, opened.eval_set, workdir / "sweeps" / folder, config=sweep)


def _in_columns(row: dict[str, float | int]) -> str:
    cells = (
        f"{row[name]:{w}d}" if isinstance(row[name], int) else f"{row[name]:{w}.4f}"
        for name, w in COLUMNS.items()
    )
    return "".join(cells)


if __name__ == "__main__":
    _launch.run(main)
