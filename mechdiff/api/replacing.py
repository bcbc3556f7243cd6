"""What ablated components are replaced with where that depends on the timestep: means over images, or the
activations of other images.

An `Intervention` holds replacements of one timestep. Sampling visits many, so a `Model` remembers where
replacements come from, and they are computed for the timesteps that are visited.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from mechdiff.core import keys
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PyTree
from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.interventions.components import select, site_type
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.storage.run_log import progress
from mechdiff.sweeps import activations

BLOCK = 16  # images at once


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Images whose activations replace a component's own.

    Attributes:
      images: in [-1, 1], NHWC.
      mean: the mean over them for every row; otherwise image i for row i.
      label: for a reader, such as `mean over 16 images`.
      condition: under which the network sees them, leaves `(images, ...)`; None: it takes none.
    """

    images: Images
    mean: bool
    label: str
    condition: PyTree = None


Sources = Mapping[str, Source]  # component -> what replaces it


def replacements_of(
    denoiser: Examinable, intervention: Intervention, sources: Sources, timesteps: Iterable[Any], most: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Replacements at each timestep: those that all rows share, site -> `(timesteps, *site)`, and those of
    single rows, site -> `(timesteps, images, *site)`.

    Args:
      most: rows that are needed; other images of a source are left out, but where it is a mean over them.

    Units of a site without a source are replaced by zero. Image i has the noise of `(key, i)` at every
    timestep, with a fixed key.

    Raises:
      ConfigError: a source, but of a mean, has fewer images than that.
    """
    shared: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    if not sources:
        return shared, rows
    for name, source in sources.items():
        if not source.mean and len(source.images) < most:
            raise ConfigError(f"{most} images, but {name} is patched from {len(source.images)}; give as many")
    by_site = _by_site(intervention, sources)
    timesteps = [int(t) for t in timesteps]
    chunks: dict[str, list[np.ndarray]] = {site: [] for site in by_site}
    distinct = {id(source): source for source in sources.values()}
    with progress(len(timesteps), desc="activations of the replacing images", unit="timestep") as bar:
        for t in timesteps:
            values = {
                name: _activations(denoiser, source, t, by_site, most) for name, source in distinct.items()
            }
            for site, owned in by_site.items():
                chunks[site].append(_joined(site, owned, values))
            bar.update()
    for site, owned in by_site.items():
        group = shared if all(source.mean for _, source in owned) else rows
        group[site] = np.stack(chunks[site])
    return shared, rows


def _by_site(intervention: Intervention, sources: Sources) -> dict[str, list[tuple[tuple[int, int], Source]]]:
    by_site: dict[str, list[tuple[tuple[int, int], Source]]] = {}
    for name, (site, index) in select(intervention, list(sources)).items():
        by_site.setdefault(site, []).append((index, sources[name]))
    return by_site


def _activations(denoiser: Examinable, source: Source, t: int, sites: Iterable[str], most: int) -> PyTree:
    """site -> `(images, *site)`, or `(1, *site)` of a mean."""
    key = keys.stream(jax.random.key(0), "replacing images")
    blocks: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    count = len(source.images) if source.mean else min(most, len(source.images))
    for start in range(0, count, BLOCK):
        indices = np.arange(start, min(start + BLOCK, count))
        condition = conditions.at(source.condition, indices)
        captured = activations.of_batch(
            denoiser, EvalBatch(source.images[indices], indices, t, key, condition)
        )
        for site, chunks in blocks.items():
            chunks.append(np.asarray(captured[site]))
    joined = {site: np.concatenate(chunks) for site, chunks in blocks.items()}
    if source.mean:
        joined = {site: value.mean(axis=0, keepdims=True) for site, value in joined.items()}
    return joined


def _joined(
    site: str, owned: list[tuple[tuple[int, int], Source]], values: Mapping[int, PyTree]
) -> np.ndarray:
    """One site's replacement at one timestep: each unit from its source, zero where there is none."""
    if site_type(site) != "head":  # one component: all of the site
        ((_, source),) = owned
        value = values[id(source)][site]
        return value[0] if source.mean else value
    count = max(len(values[id(source)][site]) for _, source in owned)
    example = values[id(owned[0][1])][site]
    joined = np.zeros((count, *example.shape[1:]), np.float32)
    for (start, stop), source in owned:
        joined[..., start:stop, :] = values[id(source)][site][..., start:stop, :]
    return joined[0] if all(source.mean for _, source in owned) else joined
