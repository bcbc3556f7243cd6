"""Saved results of a model that was never trained: random numbers in the layout of `examine.examine`."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import xarray as xr

from mechdiff.core.config import override, to_dict
from mechdiff.core.presets import preset
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.unet import components
from mechdiff.report import model_figures, style
from mechdiff.storage import files, image_grid, labelled
from mechdiff.study.network_results import STATISTICS

T = np.array([2, 20, 45], np.int32)
IMAGES = 5


def unrendered(patch, *modules) -> None:
    """Figures that modules of the report draw are made, but not written, which takes most of the time of a
    page: for pages that are looked at for something else.

    Args:
      patch: pytest's `MonkeyPatch`.
      modules: with `style` among their names; none: `model_figures`, which has those of single networks.
    """

    def page_figure(folder, name, alt, draw):
        with matplotlib.rc_context(style.settings(style.LIGHT)):
            draw(style.LIGHT)
        return style.PageFigure(name, f'<svg role="img" aria-label="{alt}"></svg>', 1, 1, alt)

    for module in modules or (model_figures,):
        patch.setattr(module, "style", SimpleNamespace(**{**vars(style), "page_figure": page_figure}))


def fabricate(folder, name: str, inputs: str, seed: int, *changes: str) -> None:
    """Saved results of one subject: random numbers in the layout of `examine.examine`."""
    rng, config = np.random.default_rng(seed), override(preset("tiny"), changes)
    listed = components(config.unet)
    log_snr = np.asarray(make_schedule(config.diffusion).log_snr)[T]
    clean = rng.uniform(0.5, 1, (len(T), IMAGES))
    worse = np.exp(rng.normal(-2, 2, (2, len(listed), 1, 1))) * rng.uniform(
        0.5, 1.5, (2, len(listed), len(T), IMAGES)
    )
    # As mean ablation of a time injection is.
    worse[1, [component.component_type == "time" for component in listed]] = 0
    dims = ("ablation", "component", "t", "image")
    levels = {"t": T, "log_snr": ("t", log_snr), "image": np.arange(IMAGES)}
    fields = {"component_type": "component_type", "resolution": "resolution", "depth": "depth"}
    swept = xr.Dataset(
        {
            "loss": (dims, (clean + worse).astype(np.float32)),
            "change": (dims, worse.astype(np.float32)),
            "clean_loss": (dims[2:], clean.astype(np.float32)),
        },
        coords={
            "ablation": ["zero", "mean"],
            "component": [component.name for component in listed],
            **{
                ours: ("component", [getattr(component, theirs) for component in listed])
                for ours, theirs in fields.items()
            },
            **levels,
        },
        attrs={"denoiser": name, "inputs": inputs, "reference_images": 16},
    )
    heads = [component for component in listed if component.component_type == "head"]
    keys = np.array([component.resolution**2 for component in heads], np.int32)
    shares = rng.uniform(0, 1, (len(heads), len(T), IMAGES)).astype(np.float32)
    values = {statistic: shares for statistic in STATISTICS}
    values["entropy"] = shares * np.log(keys)[:, None, None]
    attention = xr.Dataset(
        {statistic: (("head", "t", "image"), value) for statistic, value in values.items()},
        coords={"head": [component.name for component in heads], "tokens": ("head", keys), **levels},
    )
    where = folder / "subjects" / name
    labelled.replace(where / "sweep.zarr", swept)
    labelled.replace(where / "attention.zarr", attention)
    sheet = image_grid.sheet(rng.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8))
    files.write_atomic(where / "samples.png", image_grid.png(sheet))
    about = {"name": name, "inputs": inputs, "seed": 0, "config": to_dict(config)}
    about["record"] = record() if "held" in name else {}  # an imported model has no record
    files.write_json(where / "subject.json", about)


def record() -> dict:
    by_level = {
        "levels": [0, 20, 49],
        "test_loss_by_level": [0.9, 0.5, 0.1],
        "train_loss_by_level": [0.8, 0.5, 0.1],
    }
    summary = {**by_level, "test_loss": 0.5, "train_loss": 0.47}
    log = [{"step": 5, "kind": "train", "loss": 0.9}, {"step": 10, "kind": "train", "loss": None}]
    memorization = {"samples_nearest": 0.25, "held_out_nearest": 0.5, "ratio": 0.5, "copies": 0.125}
    evaluations = [{"step": step, "kind": "eval", **summary} for step in (5, 10)]
    return {**summary, "steps": 10, "images": 80, "memorization": memorization, "log": log + evaluations}
