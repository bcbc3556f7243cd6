"""Checks on simulated data that p values are uniform under nulls, intervals cover, and corrections hold.

`python -m experiments.calibrate --repeats=1000`
One line per check; those seen to break their promise are marked. Results: WORKDIR/calibration.json; groups
of checks that were finished (WORKDIR/checks) are not run again by the same code.
"""

import dataclasses
import time

from absl import flags

from mechdiff.core.config import to_dict
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.validation import calibration

from . import _flags, _launch

REPEATS = flags.DEFINE_integer(
    "repeats", 1000, "Independent data sets of each check.", lower_bound=50, upper_bound=100_000
)
IMAGES = flags.DEFINE_integer("images", 32, "Images in a data set.", lower_bound=4, upper_bound=10_000)
idle = _flags.SEED_ALONE


def main(config, workdir):
    started = time.monotonic()
    files.ensure_writable(workdir)
    checks = calibration.calibrate(REPEATS.value, IMAGES.value, config.seed, workdir / "checks")
    manifest = run_manifest(to_dict(config), wall_seconds=round(time.monotonic() - started, 1))
    records = [{**dataclasses.asdict(check), "holds": check.holds} for check in checks]
    files.write_json(workdir / "calibration.json", {"checks": records, "manifest": manifest})
    print(calibration.table(checks))
    return {"folder": workdir, "checks": records}


if __name__ == "__main__":
    _launch.run(main)
