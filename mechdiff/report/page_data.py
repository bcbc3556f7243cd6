"""The page's data as JSON: what report.js shows when a cell is hovered or a component's card is opened."""

import json
import math

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from mechdiff.analysis import effects
from mechdiff.analysis.effects import EffectGrid
from mechdiff.report import attention, examples
from mechdiff.report.numbers import attention_intervals
from mechdiff.stats import Interval
from mechdiff.study.examined_model import ExaminedModel

MAX_IMAGES = 101  # marks in a card; at ranks so spaced, 5 %, 50 % and 95 % quantiles are those of all images


def page_data(models: list[ExaminedModel]) -> Markup:
    """JSON of all models, safe inside a `<script>` element; see `of_model` for its entries."""
    return as_json([of_model(model) for model in models])


def as_json(models: list[dict]) -> Markup:
    """JSON of models, each as `of_model` makes it, safe inside a `<script>` element."""
    content = {"models": models}
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def of_model(model: ExaminedModel) -> dict:
    """One model's results, numbers of six digits, those of single images of four, None where there is none.

    `ablations[name]` holds `pooled` (per component: estimate, low, high, in %), `cells` (per component and
    timestep: estimate, low, high, max-T p), `idle`, and `images` (per component: an image's contribution to
    pooled ΔL/L, in %; of more than `MAX_IMAGES` some, evenly by rank), `scored` being how many there are in
    all. `attention` holds `heads`, and per statistic its title and such triples per head and
    timestep. `examples[name]` lists the images of a component's card, see `examples.figures`.
    """
    return {
        "name": model.name,
        "inputs": model.inputs,
        "own": model.own_samples,
        **axes_of(model.lead),
        "ablations": {
            name: of_grid(increase, image_contributions(model, name))
            for name, increase in model.increases.items()
        },
        "attention": _attention(model),
        "examples": examples.figures(model.examples),
    }


def axes_of(increase: EffectGrid) -> dict:
    """Timesteps and components of a model, see `of_model`."""
    components = zip(increase.components, increase.component_type, increase.resolution, strict=True)
    return {
        "t": increase.t.tolist(),
        "log_snr": short(increase.log_snr),
        "components": [
            {"name": name, "type": component_type, "resolution": int(resolution)}
            for name, component_type, resolution in components
        ],
    }


def of_grid(increase: EffectGrid, contributions: Float[np.ndarray, "component image"]) -> dict:
    """One ablation of one model, see `of_model`; `contributions` of all images, over all timesteps."""
    triples = _triples(increase.cells)
    cells = np.concatenate([triples, increase.p[..., None]], axis=-1)
    return {
        "n": increase.n,
        "people": increase.people,
        "pooled": short(_triples(increase.pooled)),
        "cells": short(cells),
        "idle": np.asarray(increase.idle).astype(int).tolist(),
        "images": short(thinned(contributions), 4),
        "scored": contributions.shape[1],
    }


def image_contributions(model: ExaminedModel, ablation: str) -> Float[np.ndarray, "component image"]:
    """Each image's contribution to pooled ΔL/L, in %; their mean is pooled ΔL/L.

    As `effects.increase_by_image`: of a sweep whose timesteps have different images, all of these.
    """
    clean, losses = effects.losses(model.sweep, ablation)
    return effects.increase_by_image(clean, losses, effects.nested(model.sweep)).reshape(len(losses), -1)


def thinned(values: Float[np.ndarray, "component image"]) -> Float[np.ndarray, "component shown"]:
    """The values; of more than `MAX_IMAGES` in a row so many, evenly by rank, the least and largest among
    them."""
    count = values.shape[1]
    if count <= MAX_IMAGES:
        return values
    return np.sort(values, axis=1)[:, np.linspace(0, count - 1, MAX_IMAGES).round().astype(int)]


def _attention(model: ExaminedModel) -> dict:
    data = model.attention
    if not data.sizes["head"]:
        return {"heads": [], "statistics": {}}
    intervals = attention_intervals(data)
    return {
        "heads": [str(head) for head in data["head"].values],
        "keys": [int(keys) for keys in data["tokens"].values],
        "n": int(data.sizes["image"]),
        "titles": {name: attention.PANELS[name] for name in intervals},
        "statistics": {name: short(_triples(interval)) for name, interval in intervals.items()},
    }


def _triples(interval: Interval) -> np.ndarray:
    return np.stack(
        [np.asarray(end, np.float64) for end in (interval.estimate, interval.low, interval.high)], -1
    )


def short(values: np.ndarray, digits: int = 6) -> list:
    """Nested lists of numbers of so many significant digits; None for what is not a number."""
    if values.ndim > 1:
        return [short(value, digits) for value in values]
    numbers = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return [number if math.isfinite(number) else None for number in numbers]
