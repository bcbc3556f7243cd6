"""Screens a trained model's components by gradients and verifies the most promising exactly.

`python -m experiments.screen --model=checkpoints/cpu16-synthetic-seed0 --channels --set=sweep.images=16`
With --every all components are run exactly; one line for each --model (several may be given) says how well
each point of expansion ranks them, and a table (WORKDIR/screen.txt) where that fails. Else it prints
for each model what was verified, how far the scores can be trusted, and the ten largest exact effects.
Result: WORKDIR/screen.json.
"""

import dataclasses

import jax
from absl import flags

from mechdiff import stats
from mechdiff.circuits import audits, score_agreement, screen_tables, screening
from mechdiff.cli import tables
from mechdiff.core.config import ABLATIONS, to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import load, untrained
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.study.replacement_values import replacement_values
from mechdiff.sweeps.execution import forecast

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_multi_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
CHANNELS = flags.DEFINE_boolean("channels", False, "Every single channel as well.")
ABLATION = flags.DEFINE_enum("ablation", "zero", ABLATIONS, "What a component is replaced by.")
POINT = flags.DEFINE_enum("point", "identity", audits.EXPANSIONS, "What the ranking is by.")
EVERY = flags.DEFINE_boolean("every", False, "Run all exactly, to see how well the scores rank them.")
UNTRAINED = flags.DEFINE_boolean("untrained", False, "With every model also a fresh network of its config.")


def _widest(denoiser):
    """Gates of the widest site: with as many groups, single channels are components everywhere."""
    return max(gate.shape[-1] for gate in denoiser.identity.gate.values())


def least_images():
    """Intervals take two images; of `--every`, which only ranks, there are none."""
    return 1 if EVERY.value else 2


idle = {"sweep.ablations": "give --ablation=NAME"}


def main(config, workdir):
    _opening.check_names([load.name_of(model) for model in MODEL.value])
    use_all_cores()
    config = dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, ablations=(ABLATION.value,)))
    screens, inputs, largest, intervals, few = {"trained": {}, "untrained": {}}, {}, {}, {}, {}
    for folder in MODEL.value:
        name = load.name_of(folder)
        denoiser, trained, images, eval_set = _opening.opened(
            config, workdir, folder, CELEBA.value, IMAGES.value, name=name
        )
        inputs[name] = images.label
        chosen = denoiser.components(_widest(denoiser) if CHANNELS.value else 0)
        networks = {"trained": denoiser}
        if UNTRAINED.value:
            networks["untrained"] = untrained.untrained(denoiser, trained.seed)
        forecast.print_memory_forecast(denoiser, config.sweep)
        for group, network in networks.items():
            screen = screened(config, workdir, network, images, eval_set, chosen)
            screens[group][network.name] = screen
            if not EVERY.value:
                units = stats.units_from(images.scored_people, eval_set.count)
                few[network.name] = stats.few_images(units.count, units.effective)
                effects = screen_tables.effect_intervals(screen, units)
                intervals[network.name] = {"effect_low": effects.low, "effect_high": effects.high}
                largest[network.name] = screen_tables.top(screen, [each.name for each in chosen], effects)
    if EVERY.value:
        save_summaries(screens, workdir)
    manifest = run_manifest(to_dict(config), models=MODEL.value, ablation=ABLATION.value, inputs=inputs)
    records = {
        name: plain(screen) | intervals.get(name, {})
        for of_group in screens.values()
        for name, screen in of_group.items()
    }
    files.write_json(workdir / "screen.json", {"models": records, "manifest": manifest})
    for name, rows in largest.items():
        title = f"{name}, {ABLATION.value} ablation: largest verified effects{few[name]}"
        tables.print_records(f"\n{title}", rows)
    print(workdir / "screen.json")
    return {"folder": workdir, "top": largest}


def screened(config, workdir, network, images, eval_set, chosen):
    """Results of `examine_all` or `verify`, as --every says, for one network."""
    root = jax.random.key(config.seed)
    replacements = replacement_values(network, images, eval_set, root, config.sweep)
    examine = examine_all if EVERY.value else verify
    return examine(
        network,
        eval_set,
        workdir / "exact",
        chosen=chosen,
        ablation=ABLATION.value,
        replacements=replacements.get(ABLATION.value),
        setting=config.sweep.precision,
    )


def save_summaries(screens, workdir):
    """Writes and prints how well scores rank the components, of trained and of untrained networks."""
    summaries = "\n\n".join(
        "\n".join([f"{len(of_group)} {group}, {ABLATION.value}", *score_agreement.summary(of_group.values())])
        for group, of_group in screens.items()
        if of_group
    )
    files.write_atomic(workdir / "screen.txt", f"{summaries}\n".encode())
    print(f"\n{summaries}")


def examine_all(denoiser, eval_set, folder, *, setting, **options):
    """Runs all components exactly; how well each point of expansion ranks them."""
    settings = screening.ScreenConfig(precision=setting)
    agreements = screening.quality(denoiser, eval_set, folder, config=settings, **options)
    phrases = [
        f"{point} {agreement.overall.spearman:.2f}, {agreement.overall.recall:.0%}"
        for point, agreement in agreements.items()
    ]
    print(f"{denoiser.name:36} Spearman, recall of the top 10: {'; '.join(phrases)}", flush=True)
    return agreements


def verify(denoiser, eval_set, folder, *, chosen, setting, **options):
    """Screens the chosen components and verifies the most promising."""
    settings = screening.ScreenConfig(point=POINT.value, precision=setting)
    screen = screening.screen_and_verify(
        denoiser, eval_set, folder, chosen=chosen, config=settings, **options
    )
    print("\n".join([denoiser.name, *screen_tables.lines(screen, [component.name for component in chosen])]))
    return screen


def plain(screen):
    """What goes into the JSON file: all but scores and losses of every image."""
    if isinstance(screen, dict):
        return {point: dataclasses.asdict(agreement) for point, agreement in screen.items()}
    record = {field.name: getattr(screen, field.name) for field in dataclasses.fields(screen)}
    record |= dict.fromkeys(("scores", "loss", "clean_loss"))
    return record | {"fidelity": dataclasses.asdict(screen.fidelity)}


if __name__ == "__main__":
    _launch.run(main)
