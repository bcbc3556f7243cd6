"""Tests how many phases denoising has: sweeps models at many noise levels and segments the effects.

`python -m experiments.phases --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.timesteps=32`
Several --model may be given; --untrained adds a fresh network of each configuration. Says for every model and
kind the k of best held-out likelihood, how often resamples chose it, where phases begin, and whether a smooth
drift fits better. Result: WORKDIR/phases.json.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

from experiments import _launch
from mechdiff import capture, files, keys, phases, pipeline, sweep
from mechdiff.config import to_dict
from mechdiff.schedules import timesteps_by_log_snr

MODEL = flags.DEFINE_multi_string("model", None, "Folder of a trained model.", required=True)
CELEBA = flags.DEFINE_string("celeba", None, "CelebA in its official layout; several folders with commas.")
UNTRAINED = flags.DEFINE_boolean("untrained", False, "With every model also a fresh network of its config.")


def main(config, workdir):
    _launch.spread_over_cores()
    found, inputs = {}, {}
    for folder in map(Path, MODEL.value):
        subject, trained, _ = pipeline.load_subject(folder)
        given = pipeline.chooser(config, CELEBA.value, workdir / "cache")(subject, trained)
        for each in [subject] + [pipeline.untrained(subject, config.seed)] * UNTRAINED.value:
            inputs[each.name] = given.label
            swept = swept_at_many_levels(each, given, config, workdir / "sweeps")
            for kind in config.sweep.kinds:
                one = phases.measure(swept, kind)
                print(line(each.name, kind, one))
                found[f"{each.name} {kind}"] = dataclasses.asdict(one) | {"boundaries": one.boundaries}
    manifest = files.manifest(to_dict(config), models=MODEL.value, inputs=inputs)
    files.write_json(workdir / "phases.json", {"phases": found, "manifest": manifest})


def swept_at_many_levels(subject, given, config, folder):
    levels, root = timesteps_by_log_snr(subject.schedule, config.sweep.timesteps), jax.random.key(config.seed)
    parts = subject.unet, subject.params, subject.identity, subject.schedule
    means = capture.activation_means(*parts, given.reference, levels, keys.stream(root, "mean noise"))
    asked = subject, given.scored, levels, keys.stream(root, "scored noise"), folder
    return sweep.teacher_forced(*asked, config=config.sweep, fills={"mean": means})


def line(name, kind, one):
    where = ", ".join(f"{edge:+.1f}" for edge in one.boundaries) or "none"
    low, high = one.likely()
    four = one.share[3] if len(one.share) > 3 else 0
    return (
        f"{name:36} {kind:5} k {one.k} [{low}, {high}], four in {four:.0%} of resamples; steps beat drift in "
        f"{one.stepped:.0%}; boundaries at log-SNR {where}"
    )


if __name__ == "__main__":
    _launch.run(main)
