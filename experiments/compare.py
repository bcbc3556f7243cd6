"""Compares two models, or one over its training: effects of ablating each component before and after.

`python -m experiments.compare --before=cpu32-synthetic-seed0 --after=runs/tuned/model --images=FOLDER`
Both are swept on the same images, timesteps and noise; differences are paired image by image, with 95 %
intervals over images and Holm's p over components. `--before=RUN --steps=all` (no --after) sweeps every step
that was exported in training (`train.keep`) and compares the first with the last. Without --images both are
examined on what the first would be. The first of `sweep.ablations` is compared. Classes are matched by name:
where two networks call them differently, --before_class_names and --after_class_names say what they are.
Start it again to go on after an interruption. Prints the ten largest changes. Results: WORKDIR/compare.html,
the page "what changed", from compare.zarr; compare.csv and compare.png, of steps also course.csv and
course.png.
"""

import dataclasses

from absl import flags
from rich.console import Console
from rich.table import Table

from mechdiff.api.compare import Comparison, compare
from mechdiff.api.course import compare_steps
from mechdiff.api.loading import load
from mechdiff.cli.tables import number
from mechdiff.core import ranges
from mechdiff.core.config import DataConfig, Preprocessing, to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.models import conditions
from mechdiff.stats import few_images, units_of
from mechdiff.storage import files, manifest
from mechdiff.study.condition_sources import CLASS_NAMES

from . import _flags, _launch

BEFORE = flags.DEFINE_string("before", None, _flags.MODEL_HELP, required=True)
AFTER = flags.DEFINE_string("after", None, "The model that it is compared with; as --before.")
STEPS = flags.DEFINE_enum("steps", None, ("all",), "Compare all exported steps of one training instead.")
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
NAMES = {
    side: flags.DEFINE_list(f"{side}_class_names", [], f"What the classes of --{side} are called, in order.")
    for side in ("before", "after")
}
FOLLOWED = "it follows -n, --timesteps, --ablations, --seed, data.preprocessing.background and .white alone"
OF_FILES = ("data.preprocessing.background", "data.preprocessing.white")  # followed of the settings of data
OF_DATA = [f"data.{each.name}" for each in dataclasses.fields(DataConfig) if each.name != "preprocessing"]
OF_DATA += [f"data.preprocessing.{each.name}" for each in dataclasses.fields(Preprocessing)]
least_images = 2
idle = dict.fromkeys(
    (
        *(name for name in OF_DATA if name not in OF_FILES),
        "sweep.nested",
        "sweep.reference_images",
        "sweep.image_block",
        "sweep.chunk",
        "sweep.draws",
        "sweep.optimal_steps",
        "sweep.precision",
    ),
    FOLLOWED,
)


def main(config, workdir):
    if (AFTER.value is None) == (STEPS.value is None):
        raise flags.Error("give a second model (--after=MODEL), or --steps=all for the steps of one training")
    if flags.FLAGS.classes or flags.FLAGS.conditions:
        raise flags.Error(
            "--classes and --conditions: compare knows classes by their names only, those in the models' "
            "records or those that --before_class_names and --after_class_names state"
        )
    if STEPS.value and any(names.value for names in NAMES.values()):
        raise flags.Error("--before_class_names and --after_class_names are for two models, not for --steps")
    use_all_cores()
    files.ensure_writable(workdir)
    models = [value for value in (BEFORE.value, AFTER.value) if value]
    made_with = manifest.run_manifest(to_dict(config), models=models)
    settings = {
        "n": config.sweep.images,
        "timesteps": config.sweep.timesteps,
        "ablation": config.sweep.ablations[0],
        "seed": config.seed,
        "folder": workdir / "sweeps",
        "background": config.data.preprocessing.background,
        "white": config.data.preprocessing.white,
    }
    if STEPS.value:
        course = compare_steps(BEFORE.value, IMAGES.value, **settings)
        manifest.write(
            workdir, made_with
        )  # not before: what is refused would leave it beside others' results
        course.plot().save(workdir / "course.png")
        comparison, page = course.changes(), course.save(workdir)
    else:
        both = (
            named(value, NAMES[side]) for side, value in (("before", BEFORE.value), ("after", AFTER.value))
        )
        comparison = compare(*both, IMAGES.value, **settings)
        manifest.write(workdir, made_with)
        page = comparison.save(workdir)
    comparison.plot().save(workdir / "compare.png")
    print_top(comparison)
    print(page)
    return {"folder": workdir, "report": page, "top": comparison.top(10).to_dict("records")}


def named(model, names):
    """The model with the names of its classes that a flag states, in place of those of its record."""
    loaded = load(model)
    if not names.value:
        return loaded
    classes = conditions.taken(loaded.denoiser.network).classes
    if len(names.value) != classes:
        stated = len(names.value)
        raise ConfigError(f"--{names.name} has {stated} names, but {loaded.name} has {classes} classes")
    ranges.distinct(f"--{names.name}", names.value)
    return dataclasses.replace(loaded, record={**loaded.record, CLASS_NAMES: names.value})


def print_top(comparison: Comparison) -> None:
    """The ten largest changes as a table, whether n is few or losses differ, and what p could be at all."""
    table = Table(box=None, header_style="bold")
    table.add_column("component", no_wrap=True)
    for head in ("before %", "after %", "change, points", "95 % interval", "p (Holm)"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in comparison.top(10).to_dict("records"):
        sides = (number(row[side]) for side in ("before", "after"))
        interval = f"[{number(row['low'])}, {number(row['high'])}]"
        table.add_row(row["component"], *sides, number(row["difference"], "+"), interval, f"{row['p']:.2g}")
    paired = comparison.paired
    print(f"{comparison.title}: largest changes{few_images(paired.n, paired.effective)}{comparison.losses}")
    Console(width=100, highlight=False, markup=False).print(table)
    if paired.least_p > 0.05:
        kind = units_of(comparison.before.dataset).kind
        print(
            f"n = {paired.n} {kind}, {len(paired.components)} components: no p can fall below "
            f"{paired.least_p:.2g}, whatever changed; take more images (-n 16)"
        )


if __name__ == "__main__":
    _launch.run(main)
