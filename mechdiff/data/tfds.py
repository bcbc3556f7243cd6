"""CelebA (or any set with an `image` feature) as TensorFlow Datasets prepares it, without TensorFlow.

It needs the extra `tfds` and a copy in the array_record format, which `prepare` makes offline from the
official files. Records are read raw: their JPEGs are cropped, filtered and cached like those of any other
source, without TFDS's own decoder, which takes longer than the JPEG itself.
"""

import hashlib
import importlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from mechdiff.core.errors import DataError
from mechdiff.data import celeba
from mechdiff.data.cache import SPLITS, Source, stored
from mechdiff.data.dataset import fingerprint

INFO = "dataset_info.json"
IDENTITY = "identity_CelebA.txt"
IMAGE_SIZE = (178, 218)  # width, height that celeb_a declares
EDGE = 2**16  # bytes at either end of a shard that are hashed
WAY_OUT = "mechdiff.data.tfds.prepare(CELEBA_FOLDER, DATA_FOLDER) makes one from the official files"


def open_source(path: str) -> Source:
    """The prepared copy at `path`: its folder (with `dataset_info.json`), or the data folder above `celeb_a`.

    Record numbers serve as ids: TFDS does not keep file names.

    Raises:
      DataError: the extra is not installed; no copy, another format, no images, or records absent.
    """
    folder = find_copy(path)
    builder = _builder(folder)
    features = builder.info.features
    if "image" not in features:
        raise DataError(f"{folder} has no 'image' feature (but {', '.join(features)}); {WAY_OUT}")
    splits = [split for split in SPLITS if _shards(builder, split)]
    records = [builder.as_data_source(split=split).data_source for split in splits]
    starts = list(itertools.accumulate((len(shard) for shard in records), initial=0))
    shards = [shard for split in splits for shard in _shards(builder, split)]
    content, names = _content(shards), tuple(features["attributes"]) if "attributes" in features else ()

    def fields(index: int):
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        row = index - starts[shard]
        return _fields(records[shard], row, f"{splits[shard]}[{row}] of {folder}")

    return Source(
        name="tfds",
        where=str(folder),
        content=content,
        stamp=fingerprint([shard.stat().st_mtime_ns for shard in shards]),
        ids=np.concatenate([np.arange(len(shard)) for shard in records]),
        splits=np.repeat([SPLITS.index(split) for split in splits], [len(shard) for shard in records]),
        labels=lambda cache: _labels(cache, content, names, starts[-1], fields),
        read=lambda index: fields(index)["image"].bytes_list.value[0],
        about={
            "copy": builder.info.full_name,
            "shards": {shard.name: shard.stat().st_size for shard in shards},
        },
    )


def find_copy(path: str) -> Path:
    """The folder with `dataset_info.json`: `path` itself, or the last version of celeb_a below it.

    Raises:
      DataError: no such folder, or no prepared copy in it.
    """
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise DataError(f"no folder {path!r} with a TFDS copy; {WAY_OUT}")
    if (folder / INFO).is_file():
        return folder
    copies = sorted(info.parent for inner in ("*", "celeb_a/*") for info in folder.glob(f"{inner}/{INFO}"))
    if not copies:
        raise DataError(f"no prepared TFDS copy (no {INFO}) in {path!r}; {WAY_OUT}")
    return copies[-1]


def prepare(source: str | Path, data_folder: str | Path) -> Path:
    """Prepare TFDS's celeb_a from the official files in `source`, offline and without TensorFlow.

    The result is what TFDS's own builder writes: any of its readers takes it. Landmarks are -1, and so are
    identities without `identity_CelebA.txt`. Packs in sub-folders are not joined. Holds the largest split in
    memory (all of CelebA: 1.7 GB).

    Returns:
      The folder of the copy, `data_folder/celeb_a/VERSION`.
    Raises:
      DataError: the extra is not installed, bad input, a copy is there already, or it can't be written.
    """
    for package in ("tensorflow_datasets", "importlib_resources"):  # it needs both and declares one
        _import(package)
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as official

    pack = celeba.read_pack(Path(source))
    if set(pack.attributes) != set(official.ATTR_HEADINGS):
        raise DataError(f"{source} lists other attributes than CelebA's 40; take its own {celeba.ATTRIBUTES}")
    builder = _offline_builder(official, pack, _identities(Path(source)))(
        data_dir=str(data_folder), file_format="array_record"
    )
    if builder.is_prepared():
        raise DataError(f"{builder.data_path} is prepared already; name another folder, or delete it first")
    limit = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = 2**63  # beyond it the shuffler would spill through TensorFlow
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise _plain(error, data_folder) from error
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit
    return Path(builder.data_path)


def _offline_builder(official: ModuleType, pack: celeba.Pack, identities: dict[str, int]) -> type:
    """TFDS's builder with the official files as its source; features, version and name are unchanged.

    Args:
      official: the module of TFDS's celeb_a.
    """
    from etils import epath
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class OfflineCelebA(official.Builder):
            name = "celeb_a"
            pkg_dir_path = epath.Path(official.__file__).parent  # where its citation and description lie

            def _split_generators(self, dl_manager):
                codes = np.unique(pack.splits)
                return {SPLITS[code]: self._generate_examples(code) for code in codes}

            def _generate_examples(self, code):
                for row in sorted(np.flatnonzero(pack.splits == code), key=pack.names.__getitem__):
                    name = pack.names[row]
                    yield (
                        name,
                        {
                            "image": io.BytesIO(_official_size(pack.read(name), name)),
                            "landmarks": dict.fromkeys(official.LANDMARK_HEADINGS, -1),
                            "attributes": dict(zip(pack.attributes, pack.flags[row].tolist(), strict=True)),
                            "identity": {"Identity_No": identities.get(name, -1)},
                        },
                    )

    return OfflineCelebA


def _official_size(encoded: bytes, name: str) -> bytes:
    try:
        size = Image.open(io.BytesIO(encoded)).size
    except Exception as error:
        raise DataError(f"image {name} can't be decoded ({error}); fetch the images again") from error
    if size != IMAGE_SIZE:
        raise DataError(f"image {name} is {size[0]}x{size[1]}; celeb_a holds 178x218 images, give those")
    return encoded


def _identities(folder: Path) -> dict[str, int]:
    path = celeba.look_for_file(folder, IDENTITY)
    try:
        lines = path.read_text().splitlines() if path else []
        return {name: int(number) for name, number in (line.split() for line in lines)}
    except ValueError as error:
        raise DataError(f"{path} is not lines of an image and a number; download it again") from error


def _plain(error: Exception, folder: str | Path) -> DataError:
    """The DataError that TFDS wrapped, or one line on any other error."""
    cause = error
    while cause is not None:
        if isinstance(cause, DataError):
            return cause
        cause = cause.__cause__ or cause.__context__
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(f"no TFDS copy could be written to {folder} ({reason[0]}); name another folder")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f'TFDS copies need a package ({error}); pip install "mechdiff[tfds]"') from error


def _builder(folder: Path):
    """TFDS's builder of a copy; it must be complete and in array_record."""
    try:
        info = json.loads((folder / INFO).read_text())
        form = info.get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / INFO} is damaged ({error}); prepare the copy again: {WAY_OUT}") from error
    if form != "array_record":
        raise DataError(f"{folder} is in the {form} format, which needs TensorFlow; {WAY_OUT} (array_record)")
    builder = _import("tensorflow_datasets").builder_from_directory(str(folder))
    shards = [shard for split in SPLITS for shard in _shards(builder, split)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent or not shards:
        what = absent[0] if absent else "train, validation and test"
        raise DataError(f"{folder} lacks {what}; prepare the copy again: {WAY_OUT}")
    return builder


def _shards(builder, split: str) -> list[Path]:
    info = builder.info.splits.get(split)
    return [Path(file) for file in info.filepaths] if info and info.num_examples else []


def _fields(records, row: int, where: str):
    """The features of one record, by TFDS's flat names."""
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(records[row]).features.feature
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"record {where} can't be read ({reason}); prepare the copy again") from error


def _labels(
    cache: Path | None, content: str, names: tuple[str, ...], count: int, fields: Callable[[int], dict]
) -> dict[str, np.ndarray]:
    """The attributes of all records; cached, since they are stored after the images."""
    if not names:
        return {}

    def blocks() -> Iterator[np.ndarray]:
        for index in tqdm(range(count), desc="reading attributes", unit=" records", disable=None):
            record = fields(index)
            yield np.array([[record[f"attributes/{name}"].int64_list.value[0] for name in names]], np.uint8)

    key = {"source": content, "attributes": list(names)}
    flags = stored(cache, "tfds-attributes", key, (count, len(names)), blocks)
    return dict(zip(names, np.array(flags, bool).T, strict=True))


def _content(shards: list[Path]) -> str:
    """Digest of names, sizes, and both ends of every shard: cheap, and it differs between preparations."""
    digest = hashlib.sha256()
    for shard in shards:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            head = file.read(EDGE)
            file.seek(max(0, size - EDGE))
            digest.update(f"{shard.name} {size}\n".encode() + head + file.read(EDGE))
    return digest.hexdigest()
