"""The command `mechdiff`, and what it shares with `python -m experiments.NAME`: hints, tables, output.

Every subcommand is a launcher of `experiments/` under a shorter name; its options are the launcher's flags.
"""

import sys
from pathlib import PurePath

from mechdiff.cli import interrupts

if [PurePath(word).stem for word in sys.argv[:1]] == [
    "mechdiff"
]:  # the console script is about to import all that it needs
    interrupts.end_silently()
