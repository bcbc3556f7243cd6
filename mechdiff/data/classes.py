"""Classes of images: one label of a data set, or several together, as whole numbers."""

import itertools

import numpy as np
from jaxtyping import Int, Shaped

from mechdiff.core.errors import ConfigError, DataError, shorten, unknown
from mechdiff.core.types import PRNGKey
from mechdiff.data.dataset import Dataset

WITHOUT_LABELS = {  # by the name of a source, the way out
    "folder": "put those of each class into a sub-folder, and set data.classes=folder (labels in an .npz are "
    "read in examinations, not in training)",
    "tfds": "of a TFDS copy the feature 'attributes' is read, as celeb_a has it; for others put images of "
    "each class into a sub-folder, and set data.name=folder and data.classes=folder",
}


def class_labels(dataset: Dataset, names: str, classes: int) -> Int[np.ndarray, " count"]:
    """The class of each image, in [0, classes).

    A label of two values is 0 (False) or 1; whole numbers are classes as they are; real numbers in [0, 1] (a
    synthetic factor's place in its range) are cut into equal parts, as many as `classes` leaves for them. Of
    several names only one may have more than two values; the last name varies fastest.

    Args:
      names: keys of `dataset.labels`, separated by commas: an attribute of CelebA such as `Smiling`, a factor
        of synthetic faces such as `hair_style`, or `folder`.
      classes: how many there are in all (`unet.classes`).

    Raises:
      ConfigError: a name that the data set has no label of, or another number of classes.
      DataError: labels that are not numbers.

    Example:
      >>> labels = {"Male": np.array([True, False]), "Smiling": np.array([True, True])}
      >>> images = np.zeros((2, 8, 8, 3), np.uint8)
      >>> faces = Dataset(name="faces", images=images, digest="", labels=labels, ids=np.arange(2))
      >>> class_labels(faces, "Male,Smiling", 4)
      array([3, 1], dtype=int32)
    """
    keys = [name.strip() for name in names.split(",")]
    for name in keys:
        if not dataset.labels:
            way_out = WITHOUT_LABELS.get(dataset.name, "take other images")
            raise ConfigError(
                f"data.classes={names}: images of {dataset.name} have no labels here; {way_out}"
            )
        if name not in dataset.labels:
            raise ConfigError(unknown(f"data.classes for {dataset.name}:", name, dataset.labels))
    several = [name for name in keys if dataset.labels[name].dtype != bool]
    rest, left_over = divmod(classes, 2 ** (len(keys) - len(several)))
    if len(several) > 1 or left_over or (rest != 1 and not several):
        raise ConfigError(
            f"data.classes={names} does not make unet.classes={classes}: a label of two values makes two, "
            "and one of several names may have more"
        )
    for name in several:
        values = dataset.names.get(name, ())
        if values and len(values) != rest:
            raise ConfigError(
                f"label {name} has {len(values)} classes ({shorten(', '.join(values))[1:-1]}), but "
                f"unet.classes={classes} leaves it {rest}; set unet.classes={classes // rest * len(values)}"
            )
    result = np.zeros(len(dataset), np.int32)
    for name in keys:
        size = rest if name in several else 2
        result = result * size + _codes(name, dataset.labels[name], size)
    return result


def class_names(dataset: Dataset, names: str, classes: int) -> tuple[str, ...]:
    """Names of the classes of `class_labels`, in their order; see there for the arguments.

    Example:
      >>> labels = {"Male": np.array([True, False]), "Smiling": np.array([True, True])}
      >>> images = np.zeros((2, 8, 8, 3), np.uint8)
      >>> faces = Dataset(name="faces", images=images, digest="", labels=labels, ids=np.arange(2))
      >>> class_names(faces, "Male,Smiling", 4)
      ('not Male, not Smiling', 'not Male, Smiling', 'Male, not Smiling', 'Male, Smiling')
    """
    keys = [name.strip() for name in names.split(",")]
    two_valued = sum(dataset.labels[name].dtype == bool for name in keys)
    called = []
    for name in keys:
        if dataset.labels[name].dtype == bool:
            called.append((f"not {name}", name))
            continue
        values = dataset.names.get(name, ())
        size = classes // 2**two_valued
        called.append(values if len(values) == size else tuple(f"{name} {value}" for value in range(size)))
    return tuple(", ".join(parts) for parts in itertools.product(*called))


def _codes(name: str, values: Shaped[np.ndarray, " count"], size: int) -> Int[np.ndarray, " count"]:
    if values.dtype.kind not in "biuf":
        raise DataError(f"label {name!r} holds {values.dtype}; classes are made of numbers")
    codes = values
    if values.dtype.kind == "f":
        codes = np.minimum(values * size, size - 1)
    outside = np.flatnonzero((codes < 0) | (codes >= size))
    if outside.size:
        raise ConfigError(
            f"label {name}={values[outside[0]]} needs more than {size} classes, which is what unet.classes "
            "leaves it"
        )
    return codes.astype(np.int32)


def factor_labels(seed: int, start: int, count: int, complexity: int) -> dict[str, np.ndarray]:
    """Labels of the synthetic faces `start .. start + count - 1`: each factor's choice, a whole number, or
    its place in its range, in [0, 1]. Factors that `complexity` freezes are left out."""
    import jax  # readers of real images do without it

    return labels_of_faces(jax.random.key(seed), start, count, complexity)


def labels_of_faces(key: PRNGKey, start: int, count: int, complexity: int) -> dict[str, np.ndarray]:
    """As `factor_labels`, of the faces of a key."""
    import jax

    from mechdiff.data.factors import RUNGS, SPECS, sample_factors

    draw = jax.vmap(lambda index: sample_factors(jax.random.fold_in(key, index), complexity))
    values = jax.jit(draw)(start + np.arange(count, dtype=np.int32))
    labels = {}
    for name in RUNGS[complexity]:
        spec, drawn = SPECS[name], np.asarray(values[name])
        if spec.choices:
            labels[name] = drawn.astype(bool if spec.choices == 2 else np.int32)
        else:
            labels[name] = np.clip((drawn - spec.low) / (spec.high - spec.low), 0, 1)
    return labels
