"""The manifest of a run: what it was made with."""

import contextlib
import importlib.metadata
import logging
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from mechdiff.core.errors import DataError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.storage import files
from mechdiff.storage.digests import PACKAGE, code_digest, to_jsonable

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "scipy", "xarray", "zarr", "mechdiff"),
)


def run_manifest(config: dict, **facts: Any) -> dict:
    """Provenance of a run: config, `facts`, versions, devices, command, UTC start, digest of the code."""
    return to_jsonable(
        {
            "config": config,
            **facts,
            "packages": {name: package_version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "numerics": NUMERICS_VERSION,
            "code": code_digest(),
            "commit": commit(),
        }
    )


def write(folder: Path, manifest: dict) -> None:
    """Writes `folder/manifest.json`. A training and an examination in one folder replace each other's, which
    is warned of: only an examination's names its `models`."""
    path = folder / "manifest.json"
    with contextlib.suppress(DataError):  # there is none
        if ("models" in files.read_record(path, ())) != ("models" in manifest):
            logging.warning(
                "%s was of other results and is replaced; give trainings and examinations each a --workdir "
                "of their own",
                path,
            )
    files.write_json(path, manifest)


def package_version(name: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of the sources: of a checkout, or as noted when a wheel was built; None: not known."""
    noted = PACKAGE / "COMMIT"
    if noted.is_file():
        return noted.read_text().strip()
    if not (PACKAGE.parent / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None
