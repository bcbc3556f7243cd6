"""Measures every component's loss increase to a stated certainty, with as few images as needed.

`python -m experiments.sweep_sequential --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.images=512`
A component is decided once its interval lies on one side of zero or is narrower than --width percent of the
clean loss; all intervals together hold with 95 %. With --set=sweep.nested=true every timestep has its own
images, which say more in as many runs. Start it again to go on. Result: WORKDIR/certified.json.
"""

import dataclasses
import sys

from absl import flags

from mechdiff.cli import tables
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.sweeps import sequential
from mechdiff.sweeps.execution import forecast
from mechdiff.sweeps.stopping import StoppingRule

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
WIDTH = flags.DEFINE_float("width", 2.0, "In percent of the clean loss; certain enough wherever it lies.")
idle = _flags.all_but(*_opening.FOLLOWED) | {"sweep.ablations": _flags.BY_ZERO}
least_images = sequential.MIN_IMAGES


def main(config, workdir):
    rule = StoppingRule(WIDTH.value)
    sequential.check_count(config.sweep.images)
    use_all_cores()
    alone = _opening.without_references(config)
    denoiser, _, images, eval_set = _opening.opened(
        alone, workdir, MODEL.value, CELEBA.value, IMAGES.value, nested=True
    )
    if images.people is not None and (note := sequential.note_on_people(images.people)):
        print(note, file=sys.stderr)
    forecast.print_memory_forecast(denoiser, config.sweep, ablations=("zero",))
    result = sequential.sequential_sweep(
        denoiser,
        images.swept_set(eval_set.timesteps, eval_set.key),
        rule,
        workdir / "certify",
        block=config.sweep.image_block,
        precision=config.sweep.precision,
    )
    manifest = run_manifest(to_dict(config), models=[denoiser.name], inputs=images.label)
    files.write_json(workdir / "certified.json", {**dataclasses.asdict(result), "manifest": manifest})
    rows = [
        {
            "component": result.components[i],
            "loss increase %": float(result.estimate[i]),
            "interval": (float(result.low[i]), float(result.high[i])),
            "images": int(result.images[i]),
            "decided": "yes" if result.decided[i] else "no",
        }
        for i in (-result.estimate).argsort(kind="stable")
    ]
    tables.print_records(f"{denoiser.name}, zero ablation: pooled over timesteps", rows)
    if result.precision_error.any():
        error = f"precision {result.precision_error.max():.2g} points at most, within the intervals"
        print(f"products in {config.sweep.precision}: {error}")
    print(
        f"{result.spent:,} components x images; the smallest fixed design would have spent {result.fixed:,}"
    )
    return {"folder": workdir, "components": rows}


if __name__ == "__main__":
    _launch.run(main)
