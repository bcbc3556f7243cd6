"""Does a head's function follow its attention entropy? By correlation over heads, and by temperature.

`python -m experiments.entropy --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.images=32`
Several --model may be given. Observed: rank correlation of entropy with the size of a head's effect and with
its selectivity. Caused: slope of selectivity on entropy within heads, at matched output norm or --nomatched.
Prints these in words, and at the end the correlations as a table: intervals are over images (or people, where
they are known), p values over heads. Result: WORKDIR/entropy.json.
"""

import dataclasses

import numpy as np
from absl import flags

from mechdiff import stats
from mechdiff.analysis.entropy_causality import MIN_HEADS
from mechdiff.cli import tables
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import load
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import entropy_results

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_multi_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
MATCHED = flags.DEFINE_boolean("matched", True, "Hold the norm of a head's output.")
least_images = 2
idle = {"sweep.ablations": _flags.BY_ZERO}


def main(config, workdir):
    _opening.check_names([load.name_of(model) for model in MODEL.value])
    use_all_cores()
    results, rows, inputs, units = {}, [], {}, []
    sweep = dataclasses.replace(config.sweep, ablations=("zero",))
    for folder in MODEL.value:
        denoiser, _, images, eval_set = _opening.opened(
            _opening.without_references(config),
            workdir,
            folder,
            CELEBA.value,
            IMAGES.value,
            check=entropy_results.check_network,
        )
        inputs[denoiser.name] = images.label
        units.append(stats.units_from(images.scored_people, eval_set.count))
        links = entropy_results.entropy_links(
            denoiser, images, eval_set, sweep, workdir / "sweeps", matched=MATCHED.value
        )._asdict()
        results[denoiser.name] = {
            name: result and dataclasses.asdict(result) for name, result in links.items()
        }
        print(denoiser.name, *(line(name, result) for name, result in links.items()), sep="\n")
        for name in ("effect", "selectivity"):
            rows.append(row(denoiser.name, name, links[name]))
    manifest = run_manifest(to_dict(config), models=MODEL.value, inputs=inputs)
    files.write_json(workdir / "entropy.json", {"entropy": results, "manifest": manifest})
    tables.print_records(title(units), rows)
    print(workdir / "entropy.json")
    return {"folder": workdir, "correlations": rows}


def title(units):
    """The line above the table, which names the units of all networks and cautions where any has few."""
    kinds = " or ".join(sorted({each.kind for each in units}))
    least = min(units, key=lambda each: each.effective)
    few = stats.few_images(least.count, least.effective)
    return (
        f"entropy of attention and what heads do: rank correlation over heads, intervals over n {kinds}, p "
        f"by shuffled heads, each by itself{few}"
    )


def row(network, name, observed):
    """A line of the table at the end."""
    overall, within = observed.overall, observed.within
    return {
        "network": network,
        "entropy and": name,
        "rho": float(overall.estimate),
        "95 %": (float(overall.low), float(overall.high)),
        "p": float(observed.p),
        "within layers": float(within.estimate),
        "within, 95 %": (float(within.low), float(within.high)),
        "within, p": float(observed.p_within),
        "heads": observed.heads,
        "n": overall.n,
    }


def line(name, result):
    """A result in words."""
    if result is None:
        return (
            f"  slopes within heads: none, as fewer than {MIN_HEADS} heads change a target at every "
            "temperature and have an entropy that temperatures move"
        )
    if name == "caused":
        within = result.within
        slopes = ", ".join(
            f"{target} {estimate:.2f} [{low:.2f}, {high:.2f}]"
            for target, estimate, low, high in zip(
                result.targets, within.estimate, within.low, within.high, strict=True
            )
        )
        yes = [target for target, follows in zip(result.targets, result.follows, strict=True) if follows]
        heads = f"  slopes within {result.heads} heads, 95 % intervals over these"
        return f"{heads}: {slopes}; as between heads: {', '.join(yes) or 'none'}"
    rho, rho_within = (
        "{estimate:.2f} [{low:.2f}, {high:.2f}]".format(**vars(each))
        for each in (result.overall, result.within)
    )
    inside = f"within layers {rho_within}, p {result.p_within:.3f}"
    if np.isnan(result.within.estimate):
        inside = "within layers nothing to compare"
    p = "" if np.isnan(result.p) else f", p {result.p:.3f}"
    return f"  entropy and {name}: {rho} over {result.heads} heads{p}, n = {result.overall.n}; {inside}"


if __name__ == "__main__":
    _launch.run(main)
