"""Images: procedural faces, Gaussian ones, CelebA (also as a TensorFlow Datasets copy), or any folder."""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from mechdiff.core.config import DRAWN, DataConfig, Preprocessing
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.data import celeba, folder, gaussian, tfds
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
    "celeba_folder",
    "celeba_images",
    "celeba_lists",
    "celeba_records",
    "tfds",
    "cache",
    "classes",
    "dataset",
    "arrays",
    "collection",
    "folder",
    "images",
    "scrambled",
    "subfolders",
    "gaussian",
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
    and Gaussian images, at most so for the others (0: all). `seed` decides these images and nothing else.
    What was decoded or rendered is kept in `config.cache`, else in `cache_dir`; with neither it stays in
    memory.

    Raises:
      DataError: images absent, truncated or foreign, an empty split, a cache that can't be written.
      ConfigError: an unknown split, or data that can't be loaded.
    """
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    cache = Path(config.cache or cache_dir) if config.cache or cache_dir else None
    count = config.n_train if split == "train" else config.n_test
    if config.name in DRAWN:
        _check_drawn(config, split, count)
        draw = _synthetic if config.name == "synthetic" else _gaussian
        return draw(config, size, split, seed, count, cache)
    if config.name not in READERS_OF:
        raise ConfigError(unknown("data.name to load images of:", config.name, [*DRAWN, *READERS_OF]))
    source = READERS_OF[config.name](config)
    if split == "train":
        for note in source.about.get("notes", ()):
            print(f"{source.where}: {note}", file=sys.stderr)
    return load_split(
        source, size=size, split=split, limit=count, folder=cache, preprocessing=config.preprocessing
    )


def _check_drawn(config: DataConfig, split: str, count: int) -> None:
    if config.preprocessing != Preprocessing():
        raise ConfigError(
            f"data.preprocessing ({config.preprocessing.description}) has no effect on data.name="
            f"{config.name}, which is drawn at its size; set data.name too, or leave it out"
        )
    room = OFFSETS["validation"]
    if not 1 <= count <= room:
        field = "data.n_train" if split == "train" else "data.n_test"
        raise ConfigError(f"{field}={count} {config.name} images for {split!r}; a split holds 1 to {room}")


def _synthetic(
    config: DataConfig, size: int, split: str, seed: int, count: int, folder: Path | None
) -> Dataset:
    from mechdiff.data import synthetic  # imports JAX's numpy; readers of real images do without

    complexity, start = config.complexity, OFFSETS[split]
    content = {"seed": seed, "level": complexity, "start": start, "count": count, "size": size}
    images = stored(
        folder,
        f"synthetic-{size}-{split}",
        content | {"generator": _generator_hash()},
        (count, size, size, 3),
        lambda: _blocks(
            split, count, lambda i, n: synthetic.render_bytes(seed, start + i, n, size, complexity)
        ),
    )
    return Dataset(
        name="synthetic",
        images=images,
        digest=fingerprint({"source": "synthetic"} | content),
        labels=factor_labels(seed, start, count, complexity) if config.classes else {},
        ids=np.arange(start, start + count),
    )


def _gaussian(
    config: DataConfig, size: int, split: str, seed: int, count: int, folder: Path | None
) -> Dataset:
    start = OFFSETS[split]
    content = {"seed": seed, "start": start, "count": count, "size": size}
    images = stored(
        folder,
        f"gaussian-{size}-{split}",
        content | {"generator": _code_hash(gaussian)},
        (count, size, size, 3),
        lambda: _blocks(split, count, lambda i, n: gaussian.render_bytes(seed, start + i, n, size)),
    )
    return Dataset(
        name=config.name,
        images=images,
        digest=fingerprint({"source": config.name} | content),
        ids=np.arange(start, start + count),
    )


def _blocks(split: str, count: int, render: Callable[[int, int], np.ndarray]) -> Iterator[np.ndarray]:
    """`render(first, number)` over all images, some at a time."""
    with tqdm(total=count, desc=f"rendering {split}", unit=" images", disable=None) as bar:
        for done in range(0, count, RENDER_BLOCK):
            step = min(RENDER_BLOCK, count - done)
            yield render(done, step)
            bar.update(step)


@lru_cache
def _generator_hash() -> str:
    """The generator's code, but comments, docstrings, layout: images of another one are drawn anew."""
    modules = [module for name, module in sorted(sys.modules.items()) if _generates(name)]
    return _code_hash(*modules)


def _code_hash(*modules: ModuleType) -> str:
    return fingerprint([_code(Path(module.__file__).read_text("utf-8")) for module in modules])


def _code(source: str) -> str:
    """A module's code without docstrings and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _generates(module: str) -> bool:
    return module.startswith("mechdiff.data.") and module.split(".")[2] not in READERS
