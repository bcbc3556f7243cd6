"""What goes into a wheel; everything else about the package is in pyproject.toml.

Besides `mechdiff` these are the launchers, the two networks of the quickstart and that of the tours: each
lies where it belongs in the checkout, and below `mechdiff` in a wheel, where no other package's names can
clash with theirs.
"""

import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

NETWORKS = ("cpu16-synthetic-seed0", "cpu32-celeba-seed0", "cpu32-synthetic-seed0")
PROOFS = ("planted/planted.json", "calibration/calibration.json")  # validation, which reports show
PLACES = {"mechdiff.launchers": "experiments", "mechdiff.checkpoints": "checkpoints"}


class BuildWithCommit(build_py):
    """Notes the commit that a wheel is built from, for the attributes of results (`storage/manifest.py`)."""

    def run(self):
        super().run()
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        if self.editable_mode or not Path(__file__).with_name(".git").exists():
            return
        try:
            commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):  # no git: a wheel without it
            return
        Path(self.build_lib, "mechdiff", "COMMIT").write_text(commit)


setup(
    cmdclass={"build_py": BuildWithCommit},
    packages=[*find_packages(include=["mechdiff", "mechdiff.*"]), *PLACES],
    package_dir=PLACES,
    package_data={
        "mechdiff": ["py.typed"],
        "mechdiff.report": ["*.html", "*.css", "*.js", "*.j2"],
        "mechdiff.checkpoints": [*PROOFS, *(f"{name}/**" for name in NETWORKS)],
    },
)
