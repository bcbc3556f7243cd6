"""What a network still does when nothing of it is left but a circuit.

A circuit C is a set of components; all others are ablated. m(C) is minus the denoising loss, averaged over
timesteps (which lie evenly in log-SNR and count alike) and over images, and its faithfulness is

  f(C) = (m(C) - m(nothing)) / (m(all) - m(nothing))

0 where no component is left and 1 for the whole network, but not bounded by these: a circuit that denoises
better than the network has f > 1, and does not do what the network does either. The definition is ours,
after MIB (Mueller et al. 2025, arXiv 2504.13151), whose circuits are sets of edges and whose m is the score
in a task. The unit of replication is the image: everything is a function of weights of images.

A component that acts at few noise levels weighs little in the average. `Trials.every_level` asks f of each
level by itself; a circuit is then as close to the network as it is where it is least so.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.interventions.build import keep_sets
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.storage import digests, labelled
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.replacements import ReplacementSource, as_source

Members = Bool[np.ndarray, "circuit component"]
NOTHING = 1e-6  # share of the loss: if ablating everything changes less, there is nothing to explain


def faithfulness_match(faithfulness: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """1 - |1 - f|: as f up to 1, less again above, where a circuit does other than the network."""
    return 1 - np.abs(1 - faithfulness)


def faithfulness(
    loss: Float[np.ndarray, "*circuit image"],
    nothing: Float[np.ndarray, " *image"],
    whole: Float[np.ndarray, " *image"],
    weights: Float[np.ndarray, "m image"],
) -> Float[np.ndarray, "*circuit m"]:
    """f of circuits under each weighting of the images: a ratio of means, not a mean of ratios."""
    return ((loss - nothing) @ weights.T) / ((whole - nothing) @ weights.T)


@dataclasses.dataclass(frozen=True)
class CircuitEvaluator:
    """Circuits of a network, run on pictures under one kind of ablation; none is run twice.

    Attributes:
      subject: whose circuits.
      images: in [-1, 1]; image i has the noise of `image_noise(key, i)` at every timestep, for all circuits.
      timesteps: evenly in log-SNR.
      kind, fills: of ablation; kinds other than `zero` need fills, site -> `(levels, *site)` or a source of
        fills, as `sweeps.ablation_sweep` takes them. Optimal fills are those of leaving out one at a time.
      chosen: components that circuits are sets of; all others are never touched. Empty: all of the network. A
        unit that two of them share stays only where both do.
      every_level: whether `faithfulness_match` is that at the worst timestep, not that of losses averaged
        over them.
      folder: keeps what was run, so that a run that was killed goes on; None: nothing is kept on disk.
      batch, block: circuits and images in one program, which serves circuits of all sizes; fewer are filled
        up.
    """

    denoiser: Denoiser
    images: Images
    timesteps: Int[np.ndarray, " levels"]
    key: PRNGKey
    ablation: str = "zero"
    replacements: PyTree = None
    chosen: tuple[Component, ...] = ()
    every_level: bool = False
    folder: Path | None = None
    batch: int = 8
    block: int = 16

    def __post_init__(self):
        if not self.chosen:
            object.__setattr__(self, "chosen", components(self.denoiser.unet))
        if self.ablation != "zero" and self.replacements is None:
            raise ConfigError(
                f"ablation kind {self.ablation!r} needs fills; see capture, replacements and optimal"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the components."""
        return tuple(component.name for component in self.chosen)

    @property
    def even(self) -> Float[np.ndarray, "1 image"]:
        """The weighting in which all images count alike."""
        return np.full((1, len(self.images)), 1 / len(self.images))

    @property
    def evaluated(self) -> int:
        """Circuits that were run so far."""
        return len(self._known)

    def losses(self, members: Members) -> Float[np.ndarray, "circuit t image"]:
        """Denoising losses of circuits, image by image; those that are known are not run again."""
        members = np.asarray(members, bool)
        new = {row.tobytes(): row for row in members}
        todo = np.array([row for mark, row in new.items() if mark not in self._known])
        for start in range(0, len(todo), self.batch):
            some = todo[start : start + self.batch]
            loss = self._run(some)
            self._keep(some, loss)
            self._known.update(zip((row.tobytes() for row in some), loss))
        return np.stack([self._known[row.tobytes()] for row in members])

    def pooled(self, members: Members) -> Float[np.ndarray, "circuit image"]:
        """Losses averaged over timesteps, in float64."""
        return self.losses(members).mean(axis=1, dtype=np.float64)

    def faithfulness(
        self, members: Members, weights: Float[np.ndarray, "m image"] | None = None
    ) -> Float[np.ndarray, "circuit m"]:
        """f of circuits under each weighting of the images; one column, all alike, if there is none.

        Raises:
          ConfigError: ablating everything changes the loss by no more than rounding.
        """
        members = np.asarray(members, bool)
        nothing, whole, *loss = self.pooled(np.concatenate([self.ends, members]))
        if abs(nothing.mean() / whole.mean() - 1) < NOTHING:
            raise ConfigError(
                f"{self.denoiser.name}: the loss is {whole.mean():.6g} with all components and without any; "
                "there is nothing that a circuit could explain"
            )
        loss = np.array(loss).reshape(-1, len(whole))
        return faithfulness(loss, nothing, whole, self.even if weights is None else weights)

    def faithfulness_match(
        self, members: Members, weights: Float[np.ndarray, "m image"] | None = None
    ) -> Float[np.ndarray, "circuit m"]:
        """How close circuits come to the network: on average over timesteps, or where they do so least.

        Raises:
          ConfigError: as `faithfulness`.
        """
        found = faithfulness_match(self.faithfulness(members, weights))
        if not self.every_level:
            return found
        nothing, whole, *loss = self.losses(np.concatenate([self.ends, members])).astype(np.float64)
        weights = self.even if weights is None else weights
        told = np.flatnonzero(np.abs(nothing.mean(1) / whole.mean(1) - 1) >= NOTHING)  # else f is of rounding
        at = lambda t: faithfulness(np.array(loss)[:, t], nothing[t], whole[t], weights)
        return np.min([faithfulness_match(at(t)) for t in told], axis=0) if len(loss) else found

    @property
    def ends(self) -> Bool[np.ndarray, "2 component"]:
        """The circuits of nothing and of all."""
        return np.repeat([[False], [True]], len(self.chosen), axis=1)

    @functools.cached_property
    def digest(self) -> str:
        """Of everything that decides the numbers."""
        return digests.digest_json(
            {
                **self.denoiser.digests(),
                "images": digests.digest_arrays(np.asarray(self.images)),
                "noise": digests.digest_arrays(jax.random.key_data(self.key)),
                "fills": self._source and self._source.digest(),
                "timesteps": np.asarray(self.timesteps).tolist(),
                "ablation": self.ablation,
                "components": self.names,
                "numerics": NUMERICS_VERSION,
            }
        )

    @functools.cached_property
    def _known(self) -> dict[bytes, Float[np.ndarray, "t image"]]:
        """Members as bytes -> losses; at first those on disk."""
        known = {}
        for path in sorted(self._home.glob("*.zarr")) if self.folder else ():
            page = labelled.read(path)
            known |= zip((row.tobytes() for row in page["member"].values), page["loss"].values)
        return known

    @property
    def _home(self) -> Path:
        return self.folder / self.digest[:16]

    def _keep(self, members: Members, loss: Float[np.ndarray, "circuit t image"]) -> None:
        if self.folder is None:
            return
        page = dataset(self, members, loss)
        labelled.create(self._home / f"{digests.digest_arrays(members)[:16]}.zarr", page, {})

    @functools.cached_property
    def _source(self) -> ReplacementSource | None:
        return None if self.ablation == "zero" else as_source(self.replacements)

    @functools.cached_property
    def _engine(self) -> Engine:
        denoiser = self.denoiser
        return Engine(denoiser.unet, denoiser.schedule, denoiser.params, together=True)

    def _run(self, members: Members) -> Float[np.ndarray, "circuit t image"]:
        rows = np.minimum(np.arange(self.batch), len(members) - 1)
        stacked = keep_sets(self.denoiser.identity, self.chosen, members[rows])
        images, block = np.asarray(self.images), min(self.block, len(self.images))
        found = np.empty((len(members), len(self.timesteps), len(images)), np.float32)
        for level, t in enumerate(self.timesteps):
            for start in range(0, len(images), block):
                # A short last block is filled up, so that it needs no program of its own.
                count = min(block, len(images) - start)
                index = np.resize(np.arange(start, start + count), block)
                loss = self._measured(stacked, images[index], index, level, int(t))
                found[:, level, start : start + count] = loss[: len(members), :count]
        return found

    def _measured(self, stacked: Intervention, images: Images, index: np.ndarray, level: int, t: int):
        """Losses `(interventions, images)`, the mean over the draws of the fills."""
        given = [stacked.replacement]
        if self._source is not None:
            given = [self._source.at(level, index, draw) for draw in range(self._source.draws)]
        filled = (dataclasses.replace(stacked, replacement=replacement) for replacement in given)
        return np.mean([self._engine.measure(one, images, index, t, self.key).loss for one in filled], axis=0)


def dataset(
    evaluator: CircuitEvaluator,
    members: Members,
    loss: Float[np.ndarray, "circuit t image"],
    **labels: Sequence,
) -> xr.Dataset:
    """Circuits and their losses with labels; `labels` give one value a circuit."""
    return xr.Dataset(
        {"member": (("circuit", "component"), members), "loss": (("circuit", "t", "image"), loss)},
        coords={
            "component": list(evaluator.names),
            "component_type": ("component", [component.component_type for component in evaluator.chosen]),
            "t": np.asarray(evaluator.timesteps),
            "image": np.arange(len(evaluator.images)),
            **{name: ("circuit", list(values)) for name, values in labels.items()},
        },
        attrs={"denoiser": evaluator.denoiser.name, "ablation": evaluator.ablation, "key": evaluator.digest},
    )
