"""Images of a component's card, out of `study.examples`."""

import io

import numpy as np
import xarray as xr
from jaxtyping import UInt8
from PIL import Image

from mechdiff.report import style
from mechdiff.storage import image_grid

QUALITY = 85  # of WebP, percent


def figures(examples: xr.Dataset | None) -> dict[str, list[dict[str, str]]]:
    """Component -> its figures, each `image` (data URI), `alt` and `caption`; empty without examples."""
    if examples is None:
        return {}
    shown: dict[str, list[dict[str, str]]] = {}
    for name in examples["component"].values.tolist():
        of_component = examples.sel(component=name)
        shown[name] = [_pair(examples, of_component, name), _strongest(examples, of_component, name)]
    for name in examples["head"].values.tolist():
        shown.setdefault(name, []).append(_maps(examples.sel(head=name), name))
    return shown


def _pair(examples: xr.Dataset, of_component: xr.Dataset, name: str) -> dict[str, str]:
    untouched, ablated = examples["untouched"].values, of_component["ablated"].values
    count = len(untouched)
    caption = (
        f"Samples from equal noise: above of the network as it is, below with {name} replaced by zero at "
        f"every step. DDIM, {examples.attrs['steps']} steps; n = {count}, for the eye only."
    )
    alt = f"{count} samples without intervention and {count} from the same noise with {name} zero-ablated."
    return _figure(image_grid.sheet(np.concatenate([untouched, ablated]), count), alt, caption)


def _strongest(examples: xr.Dataset, of_component: xr.Dataset, name: str) -> dict[str, str]:
    numbers = ", ".join(str(number) for number in of_component["strongest_image"].values.tolist())
    caption = (
        f"Scored images on which the root mean square of its activation is largest, at "
        f"t = {examples.attrs['strongest_t']}, the largest first (images {numbers})."
    )
    alt = f"The images on which the activation of {name} is largest."
    return _figure(
        image_grid.sheet(of_component["strongest"].values, len(of_component["strongest"])), alt, caption
    )


def _maps(of_head: xr.Dataset, name: str) -> dict[str, str]:
    maps = of_head["pattern"].transpose("image", "t", "query", "key").values
    rows, columns = maps.shape[:2]
    sheet = image_grid.sheet(maps.reshape(rows * columns, *maps.shape[2:], 1), columns)
    timesteps = ", ".join(str(t) for t in of_head["t"].values.tolist())
    caption = (
        f"Attention maps, queries from top to bottom and keys from left to right: a row for each of "
        f"{rows} images, columns t = {timesteps}. White is the map's own largest weight."
    )
    return {
        "image": style.data_uri(image_grid.png(sheet), "image/png"),
        "alt": f"Attention maps of {name}.",
        "caption": caption,
    }


def _figure(sheet: UInt8[np.ndarray, "y x channel"], alt: str, caption: str) -> dict[str, str]:
    return {"image": _webp(sheet), "alt": alt, "caption": caption}


def _webp(image: UInt8[np.ndarray, "y x channel"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "WEBP", quality=QUALITY)
    return style.data_uri(buffer.getvalue(), "image/webp")
