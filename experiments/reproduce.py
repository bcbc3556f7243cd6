"""Runs a study from end to end: models, sweeps, attention, one report.

`python -m experiments.reproduce` examines the shipped pair (preset quickstart; cpu16 is the study of all
shipped networks at 16x16, cpu32 that of the pair) and ends with the path of the report. `--celeba=PATH`
gives real images to examine the CelebA models on; without them they are examined on images that they draw
themselves, and the report says so. A preset that ships no models trains one on synthetic faces, and one on
CelebA or (without it) on the simplest synthetic faces, first.
"""

import dataclasses
import time
from pathlib import Path

from absl import flags

from mechdiff import report
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.data import celeba, collection
from mechdiff.models import shipped
from mechdiff.storage import files, locks
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import circuit_results, examine, further_results, plan
from mechdiff.training import loop

from . import _flags, _launch, _opening

PROOFS = ("planted/planted.json", "calibration/calibration.json")
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)


def main(config, workdir):
    start = time.monotonic()
    if config.study.models:  # else it trains, and a batch may not divide among the cores
        _flags.check_examining("reproduce")
        use_all_cores()
    with locks.lock(workdir):
        if CELEBA.value:
            celeba.open_source(CELEBA.value)  # unfit images end the run now, not after the first model
        if IMAGES.value:
            collection.open_collection(IMAGES.value)
        models = {name: shipped.folder(name) for name in config.study.models} or trained(config, workdir)
        manifest = run_manifest(to_dict(config), models=sorted(models))
        choose = _opening.chooser(config, workdir, CELEBA.value, IMAGES.value, mixed=True)
        choose = circuit_results.checking(choose, config)
        for name, folder in models.items():
            where = workdir / "subjects" / name
            examined = examine.examine(name, folder, choose, config.sweep, config.seed, where, studied=True)
            further_results.run_study(examined, config, where)
        for proof in PROOFS:  # validation of the toolkit, made by launchers of their own
            if (shipped.home() / proof).exists():
                files.write_atomic(workdir / Path(proof).name, (shipped.home() / proof).read_bytes())
        files.write_json(workdir / "manifest.json", {**manifest, "wall_seconds": time.monotonic() - start})
        page = report.build(workdir)
    print(page)
    return {"report": page, "models": sorted(models)}


def trained(config, workdir):
    """One model per data set, trained here."""
    plan.check_examinable(config)
    simple = dataclasses.replace(config.data, complexity=0)
    real = dataclasses.replace(config.data, name="celeba", path=CELEBA.value or "", n_train=0, n_test=0)
    other = {f"{config.name}-celeba": real} if CELEBA.value else {f"{config.name}-synthetic-level0": simple}
    folders = {}
    for name, data in ({f"{config.name}-synthetic": config.data} | other).items():
        folders[name] = loop.train(dataclasses.replace(config, data=data), workdir / "models" / name)
    return folders


prepare = _launch.use_huge_pages  # before any work

if __name__ == "__main__":
    prepare()
    _launch.run(main)
