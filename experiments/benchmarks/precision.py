"""How far relative loss increases move at every reduced precision, beside their sampling error.

`python -m experiments.benchmarks.precision --set=sweep.images=16 --set=sweep.timesteps=4 --workdir=runs/p`
Every shipped network, or those of `--models=a,b`, is swept in float32 and in each precision that acts on this
kind of device, on the same images under the same random numbers; one that changes nothing here is named.
The table has, over components, the mean (bias) and the largest difference of the pooled relative loss
increase, in points, and the largest as a share of the half width of its 95 % interval over images. Result:
WORKDIR/precision.json; what is finished is not run again.
"""

import dataclasses
from typing import get_args

import numpy as np
from absl import flags

from experiments import _launch
from mechdiff.analysis import effects
from mechdiff.core import devices
from mechdiff.core.config import Precision, to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import shipped
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.sweeps.ablation import ablation_sweep

MODELS = flags.DEFINE_list("models", None, "Names of shipped networks; all if not given.")


def compared(exact: effects.Effects, reduced: effects.Effects) -> dict[str, float]:
    """Differences of pooled relative loss increases, in points and as a share of half widths of intervals."""
    difference = reduced.pooled.estimate - exact.pooled.estimate
    half_width = (exact.pooled.high - exact.pooled.low) / 2
    share = np.abs(difference)[half_width > 0] / half_width[half_width > 0]
    return {
        "bias": float(difference.mean()),
        "largest": float(np.abs(difference).max()),
        "share": float(share.max()),
        "measured_by_the_sweep": float(reduced.precision_error.max()),
    }


def main(config, workdir):
    use_all_cores()
    settings = [name for name in get_args(Precision) if name != "float32"]
    acting = [name for name in settings if devices.acts(name)]
    for name in settings:
        if line := devices.explanation(name):
            print(line)
    config = dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, ablations=("zero",)))
    rows, titles = {}, f"{'bias':>10s}{'largest':>10s}{'of half width':>15s}{'measured':>10s}"
    print(f"{'network':30s}{'precision':>10s}{titles}")
    for name in MODELS.value or shipped.names():
        opened = _launch.opened(config, workdir, name, None)
        swept = {}
        for setting in ("float32", *acting):
            sweep = dataclasses.replace(config.sweep, precision=setting)
            swept[setting] = ablation_sweep(
                opened.denoiser, opened.eval_set, workdir / "sweeps", config=sweep
            )
        measured = {setting: effects.measure(result, "zero") for setting, result in swept.items()}
        for setting in acting:
            row = rows[f"{name}, {setting}"] = compared(measured["float32"], measured[setting])
            print(f"{name:30s}{setting:>10s}{row['bias']:10.4f}{row['largest']:10.4f}", end="")
            print(f"{row['share']:15.3f}{row['measured_by_the_sweep']:10.4f}", flush=True)
        manifest = run_manifest(to_dict(config), models=list(MODELS.value or shipped.names()))
        files.write_json(workdir / "precision.json", {"rows": rows, "manifest": manifest})
    return rows


if __name__ == "__main__":
    _launch.run(main)
