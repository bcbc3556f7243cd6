"""Results in one small file: cells rounded to a fraction of their standard deviation, and compressed.

A file is a zip of a Zarr group for each result, `about.json`, and other members unchanged. A variable named
in `shares` is stored as integers k of a step: value = (k + 1/2) step. The step is a fraction of the standard
deviation over `image` of the cells that differ in nothing else, so that rounding adds share^2 / 12 to their
variance (an eighth: 0.13 %), keeps every sign, and averages out over images. All others are kept exactly.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import numpy as np
import xarray as xr
import zarr
from jaxtyping import Float, Int

from mechdiff.core.errors import CheckpointError
from mechdiff.storage import files
from mechdiff.storage.labelled import renamed

STEP = "_step"  # suffix of the variable that holds the steps of another
MAX_CODE = 2**14  # multiple of a step that a code may reach
ABOUT = "about.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: equal results give equal files
COMPRESSOR = numcodecs.Blosc(cname="zstd", clevel=9, shuffle=numcodecs.Blosc.SHUFFLE)


class Packed(NamedTuple):
    """Content of a packed file: facts, results by name, and other members by name."""

    about: dict[str, Any]
    results: dict[str, xr.Dataset]
    members: dict[str, bytes]


def rounded(
    values: Float[np.ndarray, "*cells image"], share: float
) -> tuple[Int[np.ndarray, "*cells image"], Float[np.ndarray, "*cells"]]:
    """Integers k, and the steps with which `restored` gives the values back, each within half a step.

    Args:
      share: of the standard deviation over images that a step is; cells without scatter get finer steps.
    """
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max(axis=-1)
    step = np.maximum(values.std(axis=-1) * share, largest / MAX_CODE).astype(np.float32)
    codes = np.floor(values / np.where(step > 0, step, 1)[..., None])
    return codes.astype(np.int16), step


def restored(
    codes: Int[np.ndarray, "*cells image"], step: Float[np.ndarray, "*cells"]
) -> Float[np.ndarray, "*cells image"]:
    """The values that `rounded` was given, each within half a step."""
    return ((codes.astype(np.float64) + 0.5) * step[..., None]).astype(np.float32)


def write(
    path: Path,
    about: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
    shares: Mapping[str, float],
    members: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a file; whole or not at all.

    Args:
      about: JSON-ready.
      results: name -> result; dimensions of a rounded variable must include `image`.
      shares: variable -> size of its steps, as a share of the scatter over images.
      members: name -> bytes kept as they are.

    Raises:
      CheckpointError: a variable that would be rounded has cells that are missing or not finite.
    """
    _check_finite(path, results, shares)
    packed = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle,
    ):
        for name, result in results.items():
            _store(Path(folder) / name, _encoded(result, shares))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            _add(bundle, str(file.relative_to(folder)), file.read_bytes())
        _add(bundle, ABOUT, json.dumps(about, sort_keys=True).encode())
        for name, content in sorted((members or {}).items()):
            _add(bundle, name, content)
    files.ensure_writable(path.parent)
    files.write_atomic(path, packed.getvalue())


def read(path: Path) -> Packed:
    """Reads a file of `write`; rounded cells are restored.

    Raises:
      CheckpointError: absent or damaged.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            broken = bundle.testzip()
            if broken:
                raise CheckpointError(f"{path} is damaged (member {broken}); restore it, or pack it again")
            about = json.loads(bundle.read(ABOUT))
            names = sorted({name.split("/")[0] for name in bundle.namelist() if "/" in name})
            alone = [name for name in bundle.namelist() if "/" not in name and name != ABOUT]
            members = {name: bundle.read(name) for name in alone}
        store = zarr.storage.ZipStore(path, mode="r")
        results = {
            name: renamed(_decoded(xr.open_zarr(store, group=name, consolidated=False).load()))
            for name in names
        }
        store.close()
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} can't be read ({str(error)[:120]}); restore it, or pack it again"
        ) from error
    return Packed(about, results, members)


def with_about(path: Path, about: Mapping[str, Any]) -> bytes:
    """The content of a file that `write` has written, with other facts."""
    changed = io.BytesIO()
    with zipfile.ZipFile(path) as bundle, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in bundle.namelist():
            content = json.dumps(about, sort_keys=True).encode() if name == ABOUT else bundle.read(name)
            _add(other, name, content)
    return changed.getvalue()


def _check_finite(path: Path, results: Mapping[str, xr.Dataset], shares: Mapping[str, float]) -> None:
    for name, result in results.items():
        for variable in sorted(shares.keys() & result.data_vars):
            bad = int((~np.isfinite(result[variable].values)).sum())
            if bad:
                raise CheckpointError(
                    f"{path} is not written: {bad} values of {variable} in {name} are missing or not finite; "
                    f"delete {name}.zarr, run again, and check the network's output"
                )


def _encoded(result: xr.Dataset, shares: Mapping[str, float]) -> xr.Dataset:
    for name in [name for name in result.data_vars if name in shares]:
        cells = result[name].transpose(..., "image")
        codes, step = rounded(cells.values, shares[name])
        # Zigzag: small numbers of either sign have an empty high byte, which costs nothing once shuffled.
        zigzag = ((codes << 1) ^ (codes >> 15)).astype(np.uint16)
        result = result.assign(
            {name: (cells.dims, zigzag, cells.attrs), f"{name}{STEP}": (cells.dims[:-1], step)}
        )
    return result


def _decoded(result: xr.Dataset) -> xr.Dataset:
    for step in [name for name in result.data_vars if str(name).endswith(STEP)]:
        name = str(step).removesuffix(STEP)
        zigzag = result[name].values.astype(np.int32)
        codes = (zigzag >> 1) ^ -(zigzag & 1)
        values = (result[name].dims, restored(codes, result[step].values), result[name].attrs)
        result = result.assign({name: values}).drop_vars(step)
    return result


def _store(folder: Path, result: xr.Dataset) -> None:
    for name in result.variables:
        result[name].encoding = {}
    encoding = {
        name: {"chunks": result[name].shape, "compressors": (COMPRESSOR,)}
        for name in result.data_vars
        if result[name].ndim and result[name].size
    }
    result.to_zarr(folder, zarr_format=2, encoding=encoding, consolidated=False)


def _add(bundle: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    bundle.writestr(info, content)
