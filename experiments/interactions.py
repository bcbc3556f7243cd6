"""Which components back each other up: interactions of pairs in a trained model.

`python -m experiments.interactions --model=checkpoints/cpu16-synthetic-seed0 --components='.*head.*'`
All pairs are scored by products with the Hessian; the --top of them by size, and --audit others at random,
are run exactly, on images other than those that were scored. The interaction is, in percent of the clean
loss L, L(without both) - L(without a) - L(without b) + L: above 0 where each makes up for the removal of the
other.
Results: WORKDIR/pairs.json, and WORKDIR/pairs.zarr with the losses of every image.
"""

import dataclasses

from absl import flags

from mechdiff import stats
from mechdiff.circuits import redundancy
from mechdiff.core import keys
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.models.denoiser import selected_components
from mechdiff.storage import files, labelled
from mechdiff.storage.manifest import run_manifest
from mechdiff.sweeps.execution.provenance import provenance

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
COMPONENTS = flags.DEFINE_string("components", ".*", "Regular expression of their names.")
TOP = flags.DEFINE_integer("top", 20, "Pairs of the largest scores that are run exactly.", lower_bound=1)
AUDIT = flags.DEFINE_integer("audit", 20, "Other pairs that are run exactly, at random.", lower_bound=0)
NUMBERS = ("a", "b", "score", "estimate", "low", "high", "p", "single_a", "single_b", "audited")
least_images = 2
idle = {"sweep.ablations": _flags.BY_ZERO}


def main(config, workdir):
    use_all_cores()
    files.ensure_writable(workdir)
    if not config.sweep.reference_images:
        raise ConfigError("pairs are scored on the reference images; sweep.reference_images=0 leaves none")
    needing = dataclasses.replace(config.sweep, ablations=("mean",))  # so that reference images are asked for
    denoiser, _, images, eval_set = _opening.opened(
        dataclasses.replace(config, sweep=needing),
        workdir,
        MODEL.value,
        CELEBA.value,
        IMAGES.value,
        check=lambda denoiser: selected_components(denoiser, COMPONENTS.value),
    )
    chosen = selected_components(denoiser, COMPONENTS.value)
    settings = redundancy.PairConfig(top=TOP.value, audit=AUDIT.value, seed=config.seed)
    others = images.reference_set(eval_set.timesteps, keys.stream(eval_set.key, "pair scores"))
    pairs = redundancy.verified_pairs(
        denoiser,
        eval_set,
        others,
        chosen,
        config=settings,
        people=images.scored_people,
        folder=workdir / "pieces",
    )
    labelled.replace(workdir / "pairs.zarr", pairs.assign_attrs(**provenance(denoiser), inputs=images.label))
    agreements = redundancy.pair_agreement(pairs)
    record = {
        "pairs": pairs[list(NUMBERS)].reset_coords().to_pandas()[list(NUMBERS)].to_dict("records"),
        "agreement": {name: dataclasses.asdict(agreement) for name, agreement in agreements.items()},
        "manifest": run_manifest(to_dict(config), models=[denoiser.name], inputs=images.label),
    }
    files.write_json(workdir / "pairs.json", record)
    count = len(chosen) * (len(chosen) - 1) // 2
    print(f"{count:,} pairs scored on {len(images.reference)} images, ", end="")
    few = stats.few_images(pairs.attrs["n"], pairs.attrs["effective"])
    print(f"{pairs.sizes['pair']} of them run on {len(images.scored)} others{few}")
    print("\n".join(redundancy.pair_lines(pairs)))
    return {"folder": workdir, "pairs": record["pairs"], "agreement": record["agreement"]}


if __name__ == "__main__":
    _launch.run(main)
