"""Screens a trained model's components by gradients and verifies the most promising exactly.

`python -m experiments.screen --model=checkpoints/cpu16-synthetic-seed0 --channels --set=sweep.images=16`
With --every all components are run exactly; one line for each --model (several may be given) says how well
each point of expansion ranks them, and a table (WORKDIR/screen.txt) where that fails. Result:
WORKDIR/screen.json.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

from mechdiff.circuits import score_agreement, screening
from mechdiff.core.config import ABLATIONS, to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import untrained
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.study.inputs import replacement_values
from mechdiff.sweeps.execution import forecast

from . import _launch

MODEL = flags.DEFINE_multi_string("model", None, _launch.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _launch.IMAGES_HELP)
CHANNELS = flags.DEFINE_boolean("channels", False, "Every single channel as well.")
KIND = flags.DEFINE_enum("ablation", "zero", ABLATIONS, "What a component is replaced by.")
POINT = flags.DEFINE_enum("point", "identity", screening.EXPANSIONS, "What the ranking is by.")
EVERY = flags.DEFINE_boolean("every", False, "Run all exactly, to see how well the scores rank them.")
UNTRAINED = flags.DEFINE_boolean("untrained", False, "With every model also a fresh network of its config.")


def _widest(denoiser):
    """Units of the widest site: as many groups make components of single channels everywhere."""
    return max(gate.shape[-1] for gate in denoiser.identity.gate.values())


def main(config, workdir):
    use_all_cores()
    sweep = dataclasses.replace(config.sweep, ablations=(KIND.value,))
    found, inputs = {"trained": {}, "untrained": {}}, {}
    for folder in map(Path, MODEL.value):
        name = "/".join(folder.parts[-2:])
        denoiser, trained, given, eval_set = _launch.opened(
            config, workdir, folder, CELEBA.value, IMAGES.value, name=name
        )
        forecast.print_memory_forecast(denoiser, sweep)
        inputs[name] = given.label
        chosen = denoiser.components(_widest(denoiser) if CHANNELS.value else 0)
        fresh = {"untrained": untrained.untrained(denoiser, trained.seed)} if UNTRAINED.value else {}
        for group, one in {"trained": denoiser, **fresh}.items():
            replacements = replacement_values(
                one, given, eval_set.timesteps, jax.random.key(config.seed), sweep
            )
            asked = {"chosen": chosen, "ablation": KIND.value, "replacements": replacements.get(KIND.value)}
            found[group][one.name] = (every if EVERY.value else verified)(
                one, eval_set, workdir / "exact", **asked
            )
    if EVERY.value:
        groups = [(f"{len(some)} {group}, {KIND.value}", some) for group, some in found.items() if some]
        tables = "\n\n".join(
            "\n".join([title, *score_agreement.summary(some.values())]) for title, some in groups
        )
        files.write_atomic(workdir / "screen.txt", f"{tables}\n".encode())
        print(f"\n{tables}")
    manifest = run_manifest(to_dict(config), models=MODEL.value, ablation=KIND.value, inputs=inputs)
    kept = {name: plain(facts) for some in found.values() for name, facts in some.items()}
    files.write_json(workdir / "screen.json", {"models": kept, "manifest": manifest})


def every(denoiser, eval_set, folder, **asked):
    found = screening.quality(denoiser, eval_set, folder, **asked)
    shown = (f"{at} {one.overall.spearman:.2f}, {one.overall.recall:.0%}" for at, one in found.items())
    print(f"{denoiser.name:36} Spearman, recall of the top 10: {'; '.join(shown)}", flush=True)
    return found


def verified(denoiser, eval_set, folder, **asked):
    found = screening.screen_and_verify(denoiser, eval_set, folder, **asked, point=POINT.value)
    print("\n".join([denoiser.name, *screening.lines(found, [one.name for one in asked["chosen"]])]))
    return found


def plain(found):
    """What goes into the JSON file: all but the scores of every image."""
    if isinstance(found, dict):
        return {at: dataclasses.asdict(one) for at, one in found.items()}
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return kept | {"scores": None, "fidelity": dataclasses.asdict(found.fidelity)}


if __name__ == "__main__":
    _launch.run(main)
