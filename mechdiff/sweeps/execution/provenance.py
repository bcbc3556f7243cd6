"""What a result was made of: digests of its inputs, and facts on its denoiser, saved with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests

# Field of an intervention -> its value where nothing is done; the window is no matter of one value.
NOTHING = {"gate": 1, "temperature": 1, "pattern": 1, "replacement": 0, "pattern_replacement": 0, "add": 0}


def eval_set_digests(eval_set: EvalSet) -> dict:
    """Digests of the images, the key of their noise and the condition, if there is one, and the timesteps;
    JSON-ready."""
    inputs = {
        "images": digests.digest_arrays(eval_set.images),
        "noise": digests.digest_arrays(jax.random.key_data(eval_set.key)),
        "timesteps": eval_set.timesteps.tolist(),
    }
    if eval_set.condition is not None:
        inputs["condition"] = digests.digest_arrays(eval_set.condition)
    return inputs


def result_key(denoiser: Examinable, eval_set: EvalSet | None = None, **decisive: Any) -> str:
    """SHA-256 of everything that decides the numbers of a result; it names what is saved.

    Args:
      decisive: JSON-ready inputs besides the denoiser and the images. Their names are part of the key: with
        others, no saved result is found.
    """
    inputs = {} if eval_set is None else eval_set_digests(eval_set)
    if not _changes_nothing(denoiser.identity):  # a later field: results without it keep their names
        inputs["identity"] = digests.digest_arrays(denoiser.identity)
    return digests.digest_json({**denoiser.digests(), **inputs, **decisive, "numerics": NUMERICS_VERSION})


def component_keys(denoiser: Examinable, chosen: Sequence[Component]) -> list[Any]:
    """What says of components, in a key, which gates they are: their names, and where the denoiser knows
    other gates under a name, or none, the site and units too; JSON-ready.

    Example:
      >>> from mechdiff.models.toy import toy_denoiser
      >>> toy = toy_denoiser()
      >>> component_keys(toy, [toy.components()[0], Component("half", "mlp", "small.mlp", (0, 2), 1, 8)])
      ['large.mlp', ['half', 'small.mlp', 0, 2]]
    """
    own = {component.name: (component.site, component.index) for component in denoiser.components()}

    def told(component: Component) -> bool:
        site, (low, high) = component.site, component.index
        return component.name == f"{site}.{low}-{high}" or own.get(component.name) == (site, (low, high))

    return [
        component.name if told(component) else [component.name, component.site, *component.index]
        for component in chosen
    ]


def _changes_nothing(identity: Intervention) -> bool:
    """Whether it is what a denoiser comes with; a user may have put another in its place, such as one under
    which a component is ablated already."""
    if not np.array_equal(identity.window, ALWAYS):
        return False
    fields = [(getattr(identity, name), value) for name, value in NOTHING.items()]
    return all((np.asarray(leaf) == value).all() for leaves, value in fields for leaf in leaves.values())


def store(folder: str | Path, key: str) -> Path:
    """Where the result of a key is kept in a folder."""
    return Path(folder) / f"{key[:16]}.zarr"


def provenance(denoiser: Examinable) -> dict:
    """Attributes of a result: the denoiser's name, a digest of its parameters, and its noise schedule."""
    log_snr = np.asarray(denoiser.schedule.log_snr)
    return {
        "denoiser": denoiser.name,
        "parameters_sha256": digests.digest_device_arrays(denoiser.params),
        "schedule": f"{len(log_snr)} timesteps, log-SNR from {log_snr.max():.2f} to {log_snr.min():.2f}",
    }
