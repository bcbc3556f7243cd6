"""Sweeps of made-up losses."""

import numpy as np
import xarray as xr


def sweep(loss, clean, ablations=("zero",), names=None, change=None) -> xr.Dataset:
    """A finished sweep; `loss` has dims kind, component, t, image."""
    loss = np.asarray(loss, np.float32)
    names = names or [f"mid.block{i}.res" for i in range(loss.shape[1])]
    change = np.abs(loss - clean) if change is None else change
    dims = ("ablation", "component", "t", "image")
    clean = np.asarray(clean, np.float32)
    return xr.Dataset(
        {"loss": (dims, loss), "change": (dims, change), "clean_loss": (dims[2:], clean)},
        coords={
            "ablation": list(ablations),
            "component": names,
            "t": np.arange(loss.shape[2]),
            "log_snr": ("t", -np.arange(loss.shape[2], dtype=float)),
            "component_type": ("component", [name.rsplit(".", 1)[1] for name in names]),
            "resolution": ("component", [8] * len(names)),
            "depth": ("component", list(range(len(names)))),
        },
        attrs={"denoiser": "fabricated"},
    )


def random_sweep(seed: int, components: int = 6, images: int = 9, **options) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0.5, 1, (3, images))
    worse = rng.uniform(0, 1, (1, components, 1, 1)) * rng.uniform(0.8, 1.2, (1, components, 3, images))
    return sweep(clean + worse, clean, **options)
