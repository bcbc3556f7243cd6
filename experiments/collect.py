"""Packed networks of many examinations in one folder: `python -m experiments.collect --examined=FOLDER`.

FOLDER is a results folder of `experiments.examine`, or holds some (give it again for more). Their
cells/NAME.zip are copied into WORKDIR, beside a manifest.json of all of them and images.csv, the list of
images and people; `experiments.claims` and `experiments.report` need nothing else. Networks that are
examined later can be added by the same command.
"""

from absl import flags

from mechdiff.core.errors import ConfigError
from mechdiff.core.text_table import counted
from mechdiff.storage import locks
from mechdiff.study import collecting

from . import _flags, _launch

EXAMINED = flags.DEFINE_multi_string(
    "examined", [], "Folder of an examination, or of several; may be given again."
)
idle = _flags.NO_SETTINGS


def main(config, workdir):
    if not EXAMINED.value:
        raise ConfigError("nothing to collect; give a folder of examined networks with --examined=FOLDER")
    with locks.lock(workdir):
        names = collecting.collect(EXAMINED.value, workdir)
    print(f"{workdir}: {counted(len(names), 'network')}")
    return {"models": names}


if __name__ == "__main__":
    _launch.run(main)
