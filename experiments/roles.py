"""Finds roles of components of trained models: what ablating them changes in the predicted image.

`python -m experiments.roles --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.images=32`
Several --model may be given. A synthetic model is also asked for face parts and for factors read by probes.
Result: WORKDIR/roles.json, WORKDIR/NAME.zarr.
"""

import dataclasses
import sys

from absl import flags

from mechdiff import stats
from mechdiff.analysis import roles
from mechdiff.analysis.roles.image_features import image_feature_names
from mechdiff.core import ranges
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.models import load, untrained
from mechdiff.storage import files, labelled
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import role_results

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_multi_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
PART = flags.DEFINE_enum("part", "head", ("head", "res", "skip", "all"), "Components to examine.")
SETS = flags.DEFINE_integer(
    "sets", 600, "Random sets of channels for each class.", lower_bound=20, upper_bound=ranges.MAX_RANDOM
)
FRESH = flags.DEFINE_integer(
    "fresh",
    20,
    "Untrained networks to compare with; with fewer than 20 no lone role can be found.",
    lower_bound=1,
    upper_bound=ranges.MAX_RANDOM,
)
least_images = 2
idle = {"sweep.ablations": _flags.BY_ZERO}


def main(config, workdir):
    _opening.check_names([load.name_of(model) for model in MODEL.value])
    use_all_cores()
    if FRESH.value < roles.untrained_needed():
        print(f"--fresh={FRESH.value} is few: no p will be small enough for a lone role", file=sys.stderr)
    records, named_roles, inputs = {}, {}, {}
    for folder in MODEL.value:
        denoiser, trained, images, eval_set = _opening.opened(
            _opening.without_references(config), workdir, folder, CELEBA.value, IMAGES.value, check=_check
        )
        inputs[denoiser.name] = images.label
        fresh = [untrained.untrained(denoiser, config.seed + i) for i in range(FRESH.value)]
        chosen = _chosen(denoiser)
        synthetic = images.facts.get("name") == "synthetic"  # masks and factors are known of these
        targets = role_results.face_targets(trained, len(images.scored)) if synthetic else {}
        assignment, effect = roles.examine(
            denoiser,
            eval_set,
            fresh,
            chosen,
            count=SETS.value,
            seed=config.seed,
            folder=workdir / "pieces",
            **targets,
        )
        labelled.replace(workdir / f"{denoiser.name}.zarr", effect)
        records[denoiser.name] = dataclasses.asdict(assignment)
        by_name = zip(assignment.components, assignment.role, strict=True)
        named = {name: role for name, role in by_name if role != roles.UNASSIGNED}
        named_roles[denoiser.name] = named
        units = stats.units_from(images.scored_people, eval_set.count)
        count = f"{len(named)} of {len(assignment.role)} have a role (n = {units.count} {units.kind}"
        few = stats.few_images(units.count, units.effective)
        print(f"{denoiser.name}: {count}{few}): {named or 'none'}")
    manifest = run_manifest(to_dict(config), models=MODEL.value, inputs=inputs)
    files.write_json(workdir / "roles.json", {"roles": records, "manifest": manifest})
    return {"folder": workdir, "roles": named_roles}


def _chosen(denoiser):
    """The components that --part names."""
    every = denoiser.components()
    return [component for component in every if PART.value in (component.component_type, "all")]


def _check(denoiser):
    """Refuses a network without roles, untrained controls or a matched null, before images are read."""
    image_feature_names(*denoiser.image_shape[1:])
    if not _chosen(denoiser):
        others = sorted({component.component_type for component in denoiser.components()})
        raise ConfigError(
            f"{denoiser.name}: no components of --part={PART.value}; it has {', '.join(others)}"
        )
    untrained.check_can_draw(denoiser)
    roles.matched_sets(_chosen(denoiser), denoiser.components(), denoiser.identity, count=1)


if __name__ == "__main__":
    _launch.run(main)
