"""What goes into a wheel; everything else about the package is in pyproject.toml.

Besides `mechdiff` these are the launchers, the two networks of the quickstart and that of the tours: each
lies where it belongs in the checkout, and below `mechdiff` in a wheel, where no other package's names can
clash with theirs.
"""

from setuptools import find_packages, setup

NETWORKS = ("cpu16-synthetic-seed0", "cpu32-celeba-seed0", "cpu32-synthetic-seed0")
PROOFS = ("planted/planted.json", "calibration/calibration.json")  # validation, which reports show
PLACES = {"mechdiff.launchers": "experiments", "mechdiff.checkpoints": "checkpoints"}

setup(
    packages=[*find_packages(include=["mechdiff", "mechdiff.*"]), *PLACES],
    package_dir=PLACES,
    package_data={
        "mechdiff": ["py.typed"],
        "mechdiff.report": ["*.html", "*.css", "*.js", "*.j2"],
        "mechdiff.checkpoints": [*PROOFS, *(f"{name}/**" for name in NETWORKS)],
    },
)
