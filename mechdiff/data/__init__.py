"""Images: procedural faces, CelebA (also as a TensorFlow Datasets copy), or any folder; behind one record."""

import ast
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mechdiff.core.config import DataConfig, Preprocessing
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.data import celeba, folder, tfds
from mechdiff.data.cache import SPLITS, load_split, stored
from mechdiff.data.classes import class_labels, class_names, factor_labels
from mechdiff.data.dataset import Dataset, batch_at, batch_indices, fingerprint, to_bytes, to_float

__all__ = [
    "SPLITS",
    "Dataset",
    "batch_at",
    "batch_indices",
    "class_labels",
    "class_names",
    "load",
    "to_bytes",
    "to_float",
]

OFFSETS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # first index of a synthetic split
READERS = (
    "celeba",
    "tfds",
    "cache",
    "classes",
    "dataset",
    "arrays",
    "folder",
    "images",
)  # modules here that the synthetic images don't depend on
READERS_OF = {
    "celeba": lambda config: celeba.open_source(config.path),
    "tfds": lambda config: tfds.open_source(config.path),
    "folder": folder.open_source,
}
RENDER_BLOCK = 1024  # synthetic images rendered between two writes


def load(
    config: DataConfig,
    size: int,
    split: str,
    seed: int,
    cache_dir: str | Path | None,
) -> Dataset:
    """One split ("train", "validation", "test") as `size` x `size` bytes, by `config.preprocessing`.

    `config.n_train` (train) and `config.n_test` (validation and test) say how many: exactly so for synthetic
    images, at most so for the others (0: all). `seed` decides the synthetic images and nothing else. What
    was decoded or rendered is kept in `config.cache`, else in `cache_dir`; with neither it stays in memory.

    Raises:
      DataError: images absent, truncated or foreign, an empty split, a cache that can't be written.
      ConfigError: an unknown split, or a kind of data that can't be loaded.
    """
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    cache = Path(config.cache or cache_dir) if config.cache or cache_dir else None
    count = config.n_train if split == "train" else config.n_test
    if config.name == "synthetic":
        return _synthetic(config, size, split, seed, count, cache)
    if config.name not in READERS_OF:
        raise ConfigError(unknown("data.name to load images of:", config.name, ["synthetic", *READERS_OF]))
    source = READERS_OF[config.name](config)
    if split == "train":
        for note in source.about.get("notes", ()):
            print(f"{source.where}: {note}", file=sys.stderr)
    return load_split(
        source, size=size, split=split, limit=count, folder=cache, preprocessing=config.preprocessing
    )


def _synthetic(
    config: DataConfig, size: int, split: str, seed: int, count: int, folder: Path | None
) -> Dataset:
    from mechdiff.data import synthetic  # imports JAX's numpy; readers of real pictures do without

    if config.preprocessing != Preprocessing():
        raise ConfigError(
            f"data.preprocessing ({config.preprocessing.description}) has no bearing on data.name=synthetic, "
            "which is drawn at its size; set data.name too, or leave it out"
        )
    complexity, start, room = config.complexity, OFFSETS[split], OFFSETS["validation"]
    if not 1 <= count <= room:
        field = "data.n_train" if split == "train" else "data.n_test"
        raise ConfigError(f"{field}={count} synthetic images for {split!r}; a split holds 1 to {room}")

    def blocks():
        with tqdm(total=count, desc=f"rendering {split}", unit=" images", disable=None) as bar:
            for done in range(0, count, RENDER_BLOCK):
                step = min(RENDER_BLOCK, count - done)
                yield synthetic.render_bytes(seed, start + done, step, size, complexity)
                bar.update(step)

    content = {"seed": seed, "level": complexity, "start": start, "count": count, "size": size}
    key = content | {"generator": _generator_hash()}
    images = stored(folder, f"synthetic-{size}-{split}", key, (count, size, size, 3), blocks)
    return Dataset(
        name="synthetic",
        images=images,
        digest=fingerprint({"source": "synthetic"} | content),
        labels=factor_labels(seed, start, count, complexity) if config.classes else {},
        ids=np.arange(start, start + count),
    )


@lru_cache
def _generator_hash() -> str:
    """The generator's code, comments and layout aside: images of an older one are rendered again."""
    modules = [module for name, module in sorted(sys.modules.items()) if _generates(name)]
    return fingerprint([ast.dump(ast.parse(Path(module.__file__).read_text("utf-8"))) for module in modules])


def _generates(module: str) -> bool:
    return module.startswith("mechdiff.data.") and module.split(".")[2] not in READERS
