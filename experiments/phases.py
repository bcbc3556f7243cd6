"""Tests how many phases denoising has: sweeps models at many timesteps and segments the effects.

`python -m experiments.phases --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.timesteps=32`
Several --model may be given; --untrained adds a fresh network of each configuration. Says for every model and
ablation the k of best held-out likelihood, how often resamples of images (or people) chose it, where phases
begin, and whether a smooth drift fits better. Result: WORKDIR/phases.json.
"""

import dataclasses

from absl import flags

from mechdiff import stats
from mechdiff.analysis import phases
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import load, untrained
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import phase_results

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_multi_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
UNTRAINED = flags.DEFINE_boolean("untrained", False, "With every model also a fresh network of its config.")
least_images = 4


def main(config, workdir):
    phases.check_sizes(config.sweep.images, config.sweep.timesteps)
    _opening.check_names([load.name_of(model) for model in MODEL.value])
    use_all_cores()
    records, inputs = {}, {}
    for folder in MODEL.value:
        name = load.name_of(folder)
        denoiser, _, images, eval_set = _opening.opened(
            config, workdir, folder, CELEBA.value, IMAGES.value, name=name
        )
        networks = [denoiser]
        if UNTRAINED.value:
            networks.append(untrained.untrained(denoiser, config.seed))
        units = stats.units_from(images.scored_people, eval_set.count)
        for network in networks:
            inputs[network.name] = images.label
            by_ablation = phase_results.measured_phases(network, images, eval_set, config, workdir / "sweeps")
            for ablation, measured in by_ablation.items():
                print(line(network.name, ablation, measured, units))
                facts = dataclasses.asdict(measured) | {"boundaries": measured.boundaries}
                records[f"{network.name} {ablation}"] = facts
    manifest = run_manifest(to_dict(config), models=MODEL.value, inputs=inputs)
    files.write_json(workdir / "phases.json", {"phases": records, "manifest": manifest})
    return {"folder": workdir, "phases": records}


def line(name, ablation, measured, units):
    where = ", ".join(f"{edge:+.1f}" for edge in measured.boundaries) or "none"
    low, high = measured.likely()
    four = measured.share[3] if len(measured.share) > 3 else 0
    few = stats.few_images(units.count, units.effective)
    return (
        f"{name:36} {ablation:5} k {measured.k} [{low}, {high}], four in {four:.0%} of resamples; "
        f"piecewise constant beats a trend in {measured.stepped:.0%}; boundaries at log-SNR {where}; "
        f"n = {units.count} {units.kind}{few}"
    )


if __name__ == "__main__":
    _launch.run(main)
