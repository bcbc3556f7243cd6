"""Screens a trained model's components by gradients and verifies the most promising exactly.

`python -m experiments.screen --model=checkpoints/cpu16-synthetic-seed0 --channels --set=sweep.images=16`
With --every all components are run exactly, and one line for each --model (several may be given) says
how well each point of expansion ranks them. Result: WORKDIR/screen.json.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

from experiments import _launch
from mechdiff import files, keys, pipeline, screening
from mechdiff.config import to_dict
from mechdiff.schedules import timesteps_by_log_snr
from mechdiff.unet import components

MODEL = flags.DEFINE_multi_string("model", None, "Folder of a trained model.", required=True)
CELEBA = flags.DEFINE_string("celeba", None, "CelebA in its official layout; several folders with commas.")
CHANNELS = flags.DEFINE_boolean("channels", False, "Every single channel as well.")
POINT = flags.DEFINE_enum("point", "identity", screening.EXPANSIONS, "What the ranking is by.")
EVERY = flags.DEFINE_boolean("every", False, "Run all exactly, to see how well the scores rank them.")
UNTRAINED = flags.DEFINE_boolean("untrained", False, "With every model also a fresh network of its config.")


def main(config, workdir):
    _launch.spread_over_cores()
    found, inputs = {}, {}
    for folder in map(Path, MODEL.value):
        subject, trained, _ = pipeline.load_subject(folder, "/".join(folder.parts[-2:]))
        pipeline.announce(subject, config.sweep, kinds=("zero",))
        given = pipeline.chooser(config, CELEBA.value, workdir / "cache")(subject, trained)
        inputs[subject.name] = given.label
        levels = timesteps_by_log_snr(subject.schedule, config.sweep.timesteps)
        key = keys.stream(jax.random.key(config.seed), "scored noise")
        chosen = components(subject.unet, max(subject.unet.widths) * 2 if CHANNELS.value else 0)
        for each in [subject] + [pipeline.untrained(subject, config.seed)] * UNTRAINED.value:
            arguments = each, given.scored, levels, key, workdir / "exact"
            found[each.name] = (every if EVERY.value else verified)(each.name, arguments, chosen)
    manifest = files.manifest(to_dict(config), models=MODEL.value, inputs=inputs)
    files.write_json(workdir / "screen.json", {"models": found, "manifest": manifest})


def every(name, arguments, chosen):
    found = screening.quality(*arguments, chosen=chosen)
    shown = (f"{at} {one.overall.spearman:.2f}, {one.overall.recall:.0%}" for at, one in found.items())
    print(f"{name:36} Spearman, recall of the top 10: {'; '.join(shown)}")
    return {at: dataclasses.asdict(one) for at, one in found.items()}


def verified(name, arguments, chosen):
    found = screening.screen_and_verify(*arguments, chosen=chosen, point=POINT.value)
    print("\n".join([name, *screening.lines(found, [one.name for one in chosen])]))
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return kept | {"scores": None, "fidelity": dataclasses.asdict(found.fidelity)}


if __name__ == "__main__":
    _launch.run(main)
