"""Scores every method on denoisers whose responsible components are known.

`python -m experiments.planted --instances=5`
Plants are those of `validation/README.md`; `--plants`, `--sizes` and `--methods` take some of them.
Prints one line per plant and method: AUROC, precision at k, sign and window, with 95 % intervals over
instances and sizes. Results: WORKDIR/planted.json; plants that are scored are not scored again. One small
plant under all methods takes about two minutes on two cores; the default is 140 plants.
"""

import itertools
import time

from absl import flags

from mechdiff.core import ranges
from mechdiff.core.config import to_dict
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.storage.run_log import progress
from mechdiff.validation import planted

from . import _flags, _launch

INSTANCES = flags.DEFINE_integer("instances", 5, "Random instances of each plant and size.", lower_bound=1)
ONLY = flags.DEFINE_list("plants", list(planted.PLANTS), "Which plants.")
SIZES = flags.DEFINE_list("sizes", list(planted.SIZES), "Which sizes of network.")
METHODS = flags.DEFINE_list("methods", list(planted.METHODS), "Which methods.")
idle = _flags.SEED_ALONE


def main(config, workdir):
    started, records = time.monotonic(), []
    for what, flag, known in (
        ("size", SIZES, planted.SIZES),
        ("plant", ONLY, planted.PLANTS),
        ("method", METHODS, planted.METHODS),
    ):
        if not flag.value:
            raise ConfigError(f"--{flag.name}= names none; leave it out for all")
        for name in flag.value:
            if name not in known:
                raise ConfigError(unknown(what, name, known))
        ranges.distinct(f"--{flag.name}", flag.value)  # a plant's records would count twice
    ranges.within("seed + instances", config.seed + INSTANCES.value, 1, 2**32)  # each is a seed
    files.ensure_writable(workdir / "planted")
    plants = list(itertools.product(SIZES.value, ONLY.value))
    with progress(INSTANCES.value * len(plants), desc="scoring", unit="plant") as bar:
        for instance in range(config.seed, config.seed + INSTANCES.value):
            for size, name in plants:
                records += planted.scored(name, instance, size, workdir / "planted", METHODS.value)
                bar.update()
            rows = planted.summarize(records)  # of the instances so far: a run cut short has its table
            facts = {
                "instances": instance + 1 - config.seed,
                "wall_seconds": round(time.monotonic() - started, 1),
                "processor_seconds": round(time.process_time(), 1),  # of this run, without what was there
            }
            saved = {"summary": rows, "records": records, "manifest": run_manifest(to_dict(config), **facts)}
            files.write_json(workdir / "planted.json", saved)
    print(planted.table(rows))
    return {"folder": workdir, "summary": rows}


if __name__ == "__main__":
    _launch.run(main)
