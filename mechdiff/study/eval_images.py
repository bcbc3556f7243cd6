"""The images that a denoiser is examined on: scored images, reference images, and facts about them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff.analysis.class_effects import CLASS
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, ExaminedImages, Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models import conditions
from mechdiff.stats.clusters import PERSON

MIN_PEOPLE = 4  # of images in two halves: two to choose on, two to measure on
Steps = Sequence[int] | Int[AnyArray, " timesteps"]


@dataclasses.dataclass(frozen=True)
class EvalImages:
    """Images that a denoiser is examined on, in [-1, 1].

    Attributes:
      scored: losses are measured on these.
      reference: other images of the same data, for mean activations and other replacements.
      label: description in words.
      nested: different images for every timestep of a sweep, see `process.images_at`; None: the
        scored images serve all timesteps.
      people: number of the person in each image swept, `[images]` or nested `[timesteps, images]`; None
        unless all are known.
      facts: JSON-ready: name and digest of the data, count, preprocessing, and whether they were held out
        from training (None: unknown); for held-out ones `ids`, their names in their source, those
        swept first (timestep by timestep), then the reference images.
      condition: of the images swept (classes, say), leaves `[images]` or nested `[timesteps, images]`; None:
        the network takes none.
      reference_condition: of the reference images.
    """

    scored: Images
    reference: Float[AnyArray, "references height width channels"]
    label: str
    nested: Float[AnyArray, "timesteps images height width channels"] | None = None
    people: Int[np.ndarray, "*timesteps images"] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    condition: PyTree = None
    reference_condition: PyTree = None

    @property
    def labels(self) -> dict:
        """Coordinates of a sweep's results: the person in each image and its class, where known."""
        coords = {} if self.people is None else {PERSON: self.people}
        label = self.condition.get("label") if isinstance(self.condition, dict) else self.condition
        rank = 1 if self.nested is None else 2
        if (
            label is not None
            and np.issubdtype(np.asarray(label).dtype, np.integer)
            and np.ndim(label) == rank
        ):
            coords[CLASS] = np.asarray(label)
        return {name: (("t", "image")[-values.ndim :], values) for name, values in coords.items()}

    @property
    def scored_people(self) -> Int[np.ndarray, " images"] | None:
        """The person in each scored image; None where that is not known."""
        if self.people is None or self.people.ndim == 1:
            return self.people
        return self.people[0]

    def with_people(self, result: xr.Dataset) -> xr.Dataset:
        """A result on the scored images with the person in each, where that is known."""
        people = self.scored_people
        return result if people is None else result.assign_coords({PERSON: ("image", people)})

    @property
    def swept(self) -> ExaminedImages:
        """Images of sweeps over all timesteps: nested ones if there are any, else the scored ones."""
        return self.scored if self.nested is None else self.nested

    @property
    def scored_condition(self) -> PyTree:
        """The condition of the scored images."""
        return self.condition if self.nested is None else conditions.at(self.condition, 0)

    def swept_set(self, timesteps: Steps, key: PRNGKey) -> EvalSet:
        """The images of sweeps over all timesteps, with their noise and condition."""
        return EvalSet(self.swept, timesteps, key, self.condition)

    def scored_set(self, timesteps: Steps, key: PRNGKey) -> EvalSet:
        """The scored images, at every timestep."""
        return EvalSet(self.scored, timesteps, key, self.scored_condition)

    def reference_set(self, timesteps: Steps, key: PRNGKey) -> EvalSet:
        """The reference images, at every timestep."""
        return EvalSet(self.reference, timesteps, key, self.reference_condition)

    def first(self, count: int) -> "EvalImages":
        """The first `count` images, at every timestep."""
        nested = None if self.nested is None else self.nested[:, :count]
        people = None if self.people is None else self.people[..., :count]
        taken = slice(count) if nested is None else (slice(None), slice(count))
        condition = conditions.at(self.condition, taken)
        return dataclasses.replace(
            self, scored=self.scored[:count], nested=nested, people=people, condition=condition
        )

    def fewer_references(self, count: int) -> "EvalImages":
        """With the first `count` of the reference images only."""
        condition = conditions.at(self.reference_condition, slice(count))
        return dataclasses.replace(self, reference=self.reference[:count], reference_condition=condition)

    def halves(self) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
        """Rows of the scored images in two halves, what is chosen on one of which is measured on the other.

        Where people are known nobody is in both: people come in the order of their first images, until half
        of the images is reached. If each has one, or else is in one half anyway, it is the first half of the
        images and the second.

        Raises:
          ConfigError: fewer than 4 people: 2 on either side say how sure a number is.
        """
        rows, people = np.arange(len(self.scored)), self.scored_people
        if people is None:
            return rows[: len(rows) // 2], rows[len(rows) // 2 :]
        _, first_image, member, images = np.unique(
            people, return_index=True, return_inverse=True, return_counts=True
        )
        if len(images) < MIN_PEOPLE:
            raise ConfigError(
                f"{len(rows)} images of {len(images)} people are too few to choose on some people and "
                f"measure on others; give those of {MIN_PEOPLE} or more (sweep.images)"
            )
        order = np.argsort(first_image)
        before = images[order].cumsum() - images[order]  # images of the people who come earlier
        count = np.clip((before < len(rows) // 2).sum(), 2, len(images) - 2)
        in_first = np.isin(member, order[:count])
        return np.flatnonzero(in_first), np.flatnonzero(~in_first)

    def subset(self, chosen: slice | Int[np.ndarray, " n"]) -> "EvalImages":
        """Some of the scored images, at every timestep."""
        condition = conditions.at(self.scored_condition, chosen)
        people = None if self.scored_people is None else self.scored_people[chosen]
        return dataclasses.replace(
            self, scored=self.scored[chosen], nested=None, people=people, condition=condition
        )


def with_phases(label: str, preprocessing: str) -> str:
    """The label of images, which says of images with random phases that they are no more what they were.

    Args:
      label: of which an older one does not say so.
      preprocessing: in words, see `data_config.Preprocessing.description`.

    Example:
      >>> with_phases("held-out CelebA images; of unknown people", "no crop, bicubic, RGB, random phases")
      'held-out CelebA images, phases scrambled; of unknown people'
    """
    if "random phases" not in preprocessing or "phases" in label:
        return label
    images, rest, further = label.partition(";")
    return f"{images}, phases scrambled{rest}{further}"


def images_to_evaluate(config: SweepConfig) -> int:
    """Images whose losses a sweep measures, over all timesteps."""
    return config.images * (config.timesteps if config.nested else 1)


def images_taken(there: int, config: SweepConfig) -> int:
    """How many of the images that are there the settings take, fewer for reference where no ablation needs
    them; 0: they are too few."""
    scored = images_to_evaluate(config)
    if there >= scored + config.reference_images:
        return scored + config.reference_images
    return there if there >= scored and not config.needs_reference else 0


def split_images(
    pixels: Images, config: SweepConfig, label: str, people: Int[np.ndarray, " count"] | None = None
) -> EvalImages:
    """The first images to be scored, the others for reference; people only where all are known."""
    scored, reference = np.split(pixels, [images_to_evaluate(config)])
    nested = scored.reshape(-1, config.images, *scored.shape[1:]) if config.nested else None
    people = None if people is None else people[: len(scored)]
    if people is not None and (people < 0).any():  # images of unknown people would count as independent
        people = None
    if people is not None and config.nested:
        people = people.reshape(-1, config.images)
    return EvalImages(scored[: config.images], reference, label, nested, people)


def conditioned(images: EvalImages, condition: PyTree, config: SweepConfig) -> EvalImages:
    """The images with their condition, cut as `split_images` cuts them."""
    scored = images_to_evaluate(config)

    def swept(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)[:scored]
        return leaf.reshape(-1, config.images, *leaf.shape[1:]) if config.nested else leaf

    return dataclasses.replace(
        images,
        condition=jax.tree.map(swept, condition),
        reference_condition=conditions.at(condition, slice(scored, None)),
    )


def settings_in_words(config: SweepConfig) -> str:
    """The settings that decide how many images are needed, in words; in the Python API the first is called
    `n`."""
    scored = "sweep.images (n) x sweep.timesteps" if config.nested else "sweep.images (n)"
    return f"{scored} + sweep.reference_images" if config.reference_images else scored
