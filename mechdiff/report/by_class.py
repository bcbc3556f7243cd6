"""Effects on the images of each class, of a network with classes: numbers, no drawing, no HTML."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechdiff import stats
from mechdiff.analysis.class_effects import CLASS, class_effects, fewest_units
from mechdiff.core.config import UNetConfig
from mechdiff.models import conditions
from mechdiff.report.numbers import Value
from mechdiff.study.condition_sources import CLASS_NAMES
from mechdiff.study.examined_model import ExaminedModel

MAX_COMPONENTS = 10  # in the table, those of the largest effects
MAX_CLASSES = 12  # in the table, those of the most images
MIN_IMAGES = 8  # or people, of a class at a timestep: see `class_effects.MIN_IMAGES` for what intervals cover


@dataclass(frozen=True)
class Row:
    """One component: its pooled ΔL/L on the images of each class, and on all."""

    component: str
    component_type: str
    everywhere: Value
    values: tuple[Value, ...]


@dataclass(frozen=True)
class ByClass:
    """Effects by class of one model.

    Attributes:
      classes: titles of the columns.
      images: of each class, all timesteps together.
      rows: the components with the largest pooled |ΔL/L|, then those of type `class`.
      left_out: classes with fewer than `MIN_IMAGES` images (or people, as they count) at some timestep, or
        beyond the first `MAX_CLASSES`.
    """

    ablation: str
    classes: tuple[str, ...]
    images: tuple[int, ...]
    rows: tuple[Row, ...]
    left_out: int
    fewest: int = MIN_IMAGES


def by_class(model: ExaminedModel) -> ByClass | None:
    """Effects of the lead ablation by class; None where the classes of images are not known."""
    if CLASS not in model.sweep.coords:
        return None
    labels = model.sweep[CLASS].transpose(..., "image").values
    present, counts = np.unique(labels, return_counts=True)
    units = stats.units_of(model.sweep)
    enough = np.array([fewest_units(units, labels, label) >= MIN_IMAGES for label in present])
    most = np.argsort(-counts[enough], kind="stable")[:MAX_CLASSES]
    kept = np.sort(present[enough][most])
    names = tuple(class_name(model, int(label)) for label in kept)
    images = tuple(int(counts[present == label][0]) for label in kept)
    rows = _rows(model, kept) if len(kept) else ()
    return ByClass(model.lead.ablation, names, images, rows, len(present) - len(kept))


def _rows(model: ExaminedModel, kept: np.ndarray) -> tuple[Row, ...]:
    lead = model.lead
    largest = np.argsort(-np.abs(lead.pooled.estimate), kind="stable")[:MAX_COMPONENTS].tolist()
    classes = [i for i, component_type in enumerate(lead.component_type) if component_type == "class"]
    chosen = [i for i in [*largest, *(i for i in classes if i not in largest)] if not lead.idle[i]]
    names = [lead.components[i] for i in chosen]
    sweep = model.sweep.sel(component=names)
    effects = class_effects(sweep, lead.ablation, labels=kept.tolist())
    return tuple(
        Row(
            lead.components[i],
            lead.component_type[i],
            Value(*(float(getattr(lead.pooled, end)[i]) for end in ("estimate", "low", "high"))),
            tuple(_value(effects, lead.components[i], label) for label in kept.tolist()),
        )
        for i in chosen
    )


def _value(effects: xr.Dataset, component: str, label: int) -> Value:
    cell = effects.sel({"component": component, CLASS: label})
    return Value(*(float(cell[end]) for end in ("estimate", "low", "high")))


def class_name(model: ExaminedModel, label: int) -> str:
    """What a class is called: by the model's record, else its number."""
    names = model.record.get(CLASS_NAMES) or ()
    takes = conditions.taken(model.config.unet)
    if label == takes.null_label:
        return "no class"
    return f"{label}: {names[label]}" if label < len(names) else str(label)


def conditioned_on(model: ExaminedModel) -> str:
    """The conditions of a UNet in words; empty for an unconditional network."""
    unet = model.config.unet
    if model.function or not conditions.takes(unet):
        return ""
    said = [_classes(model, unet)] if unet.takes_labels else []
    said += [f"an image of {unet.condition_channels} channels"] if unet.condition_channels else []
    return " and ".join(said)


def _classes(model: ExaminedModel, unet: UNetConfig) -> str:
    if not unet.classes:
        return f"a class, by {unet.class_embedding} embedding"
    names = model.record.get(CLASS_NAMES) or ()
    shown = f": {', '.join(names[:MAX_CLASSES])}{', …' if len(names) > MAX_CLASSES else ''}" if names else ""
    null = "" if unet.null_label is None else f", or none of them (label {unet.null_label})"
    return f"one of {unet.classes} classes{shown}{null}"
