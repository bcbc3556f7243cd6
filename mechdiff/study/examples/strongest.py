"""Images on which the activation of a component is largest."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff.core.batches import batches
from mechdiff.core.types import PRNGKey
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examples.sizes import Sizes
from mechdiff.study.examples.thumbnails import thumbnails
from mechdiff.sweeps import activations
from mechdiff.sweeps.execution import footprint, memory


def find(
    denoiser: Examinable,
    chosen: Sequence[Component],
    images: EvalImages,
    t: int,
    noise: PRNGKey,
    sizes: Sizes,
) -> xr.Dataset:
    """The scored images on which the activation of a component has the largest root mean square at `t`.

    Returns:
      By component, the largest first: `strongest`, as bytes, and `strongest_image`, their numbers.
    """
    network, count = denoiser.network, len(images.scored)
    of_image = footprint.row_bytes(network) + footprint.replacement_bytes(network)
    block = memory.images_at_once(min(8, count), of_image)
    size = np.empty((len(chosen), count))
    eval_set = images.scored_set([t], noise)
    for batch in batches(count, block):
        image_rows = batch.indices
        values = activations.of_batch(denoiser, eval_set.batch(0, image_rows))
        for row, component in enumerate(chosen):
            size[row, image_rows] = root_mean_square(denoiser, component, np.asarray(values[component.site]))
    order = np.argsort(-size, axis=1, kind="stable")[:, : sizes.strongest]
    axes = ("component", "rank")
    return xr.Dataset(
        {
            "strongest": (
                (*axes, "y", "x", "channel"),
                thumbnails(np.asarray(images.scored)[order], sizes.side),
            ),
            "strongest_image": (axes, order.astype(np.int32)),
        },
        coords={"component": [component.name for component in chosen]},
        attrs={"strongest_t": t},
    )


def root_mean_square(
    denoiser: Examinable, component: Component, activation: Float[np.ndarray, "images ..."]
) -> Float[np.ndarray, " images"]:
    """Root mean square of a component's units (channels or heads) of its site, image by image."""
    own = np.moveaxis(activation, denoiser.unit_axis(component.site), -1)[..., slice(*component.index)]
    return np.sqrt((own.astype(np.float64) ** 2).mean(axis=tuple(range(1, own.ndim))))
