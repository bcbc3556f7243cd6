"""Finds every component's loss increase to a stated certainty, with images only where they are needed.

`python -m experiments.sweep_sequential --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.images=512`
A component is decided once its interval lies on one side of zero or is narrower than --width percent of the
clean loss; all intervals together hold with 95 %. With --set=sweep.nested=true every timestep has images of
its own, which say more in as many runs. Start it again to go on. Result: WORKDIR/certified.json.
"""

import dataclasses

from absl import flags

from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.sweeps.execution import forecast
from mechdiff.sweeps.sequential import sequential_sweep

from . import _launch

MODEL = flags.DEFINE_string("model", None, _launch.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _launch.IMAGES_HELP)
WIDTH = flags.DEFINE_float("width", 2.0, "In percent of the clean loss; certain enough wherever it lies.")


def main(config, workdir):
    use_all_cores()
    files.ensure_writable(workdir)
    denoiser, _, given, eval_set = _launch.opened(config, workdir, MODEL.value, CELEBA.value, IMAGES.value)
    forecast.print_memory_forecast(denoiser, config.sweep, ablations=("zero",))
    found = sequential_sweep(
        denoiser,
        given.swept_set(eval_set.timesteps, eval_set.key),
        workdir / "certify",
        width=WIDTH.value,
        block=config.sweep.image_block,
        precision=config.sweep.precision,
    )
    manifest = run_manifest(to_dict(config), models=[denoiser.name], inputs=given.label)
    files.write_json(workdir / "certified.json", {**dataclasses.asdict(found), "manifest": manifest})
    for i in (-found.estimate).argsort(kind="stable"):
        bounds = f"[{found.low[i]:.2f}, {found.high[i]:.2f}]"
        mark = "" if found.decided[i] else "  undecided"
        print(f"{found.components[i]:24}{found.estimate[i]:10.2f} %  {bounds:24}{found.images[i]:6d}{mark}")
    if found.precision_error.any():
        words = f"precision {found.precision_error.max():.2g} points at most, within the intervals"
        print(f"products in {config.sweep.precision}: {words}")
    print(
        f"{found.spent:,} components x pictures; the smallest fixed design would have spent {found.fixed:,}"
    )


if __name__ == "__main__":
    _launch.run(main)
