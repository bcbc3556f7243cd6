"""Tests how many phases denoising has: sweeps models at many timesteps and segments the effects.

`python -m experiments.phases --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.timesteps=32`
Several --model may be given; --untrained adds a fresh network of each configuration. Says for every model and
ablation the k of best held-out likelihood, how often resamples chose it, where phases begin, and whether a
smooth drift fits better. Result: WORKDIR/phases.json.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

from mechdiff.analysis import phases
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import untrained
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.study.inputs import replacement_values
from mechdiff.sweeps.ablation import ablation_sweep

from . import _launch

MODEL = flags.DEFINE_multi_string("model", None, _launch.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _launch.IMAGES_HELP)
UNTRAINED = flags.DEFINE_boolean("untrained", False, "With every model also a fresh network of its config.")


def main(config, workdir):
    use_all_cores()
    found, inputs = {}, {}
    for folder in map(Path, MODEL.value):
        name = "/".join(folder.parts[-2:])
        denoiser, _, given, eval_set = _launch.opened(
            config, workdir, folder, CELEBA.value, IMAGES.value, name=name
        )
        for each in [denoiser] + [untrained.untrained(denoiser, config.seed)] * UNTRAINED.value:
            inputs[each.name] = given.label
            replacements = replacement_values(
                each, given, eval_set.timesteps, jax.random.key(config.seed), config.sweep
            )
            swept = ablation_sweep(
                each, eval_set, workdir / "sweeps", config=config.sweep, replacements=replacements
            )
            for ablation in config.sweep.ablations:
                one = phases.measure(swept, ablation)
                print(line(each.name, ablation, one))
                found[f"{each.name} {ablation}"] = dataclasses.asdict(one) | {"boundaries": one.boundaries}
    manifest = run_manifest(to_dict(config), models=MODEL.value, inputs=inputs)
    files.write_json(workdir / "phases.json", {"phases": found, "manifest": manifest})


def line(name, ablation, one):
    where = ", ".join(f"{edge:+.1f}" for edge in one.boundaries) or "none"
    low, high = one.likely()
    four = one.share[3] if len(one.share) > 3 else 0
    return (
        f"{name:36} {ablation:5} k {one.k} [{low}, {high}], four in {four:.0%} of resamples; steps beat "
        f"drift in {one.stepped:.0%}; boundaries at log-SNR {where}"
    )


if __name__ == "__main__":
    _launch.run(main)
