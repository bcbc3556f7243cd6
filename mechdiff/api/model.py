"""`Model`: a denoiser under an intervention, to hold, change, sample and measure."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import xarray as xr

from mechdiff.api import changes, describing, drawing, predicting, reading, result, screening
from mechdiff.api.images import Given
from mechdiff.api.replacing import Source
from mechdiff.api.selection import What
from mechdiff.api.show import Samples
from mechdiff.core.config import ExperimentConfig, Precision
from mechdiff.core.types import AnyArray, Images
from mechdiff.interventions.components import Component, component_at
from mechdiff.interventions.describe import describe
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A denoiser under an intervention. Methods that change something return another model.

    Attributes:
      denoiser: the network, untouched.
      intervention: what is done to it.
      sources: component -> images whose activations replace its own, timestep by timestep.
      config: how it was trained; None: not known.
      record: of its training or import.
      origin: where it was loaded from.

    Example:
      >>> import mechdiff as md
      >>> model = md.load("cpu16-synthetic-seed0")
      >>> model.ablate("mid.attn0.head.").during(0, 300)  # doctest: +ELLIPSIS
      Model('cpu16-synthetic-seed0': UNet 16x16x3, ...; zero: mid.attn0.head0, ...; t in [0, 300))
      >>> model.components(type="head").columns.tolist()
      ['name', 'type', 'resolution', 'depth']
    """

    denoiser: Examinable
    intervention: Intervention
    sources: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    config: ExperimentConfig | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: str = ""

    @property
    def name(self) -> str:
        """Shown in results."""
        return self.denoiser.name

    @property
    def doing(self) -> str:
        """What is done to the network, in words."""
        labels = {name: source.label for name, source in self.sources.items()}
        return describe(self.intervention, labels)

    def components(self, type: str | None = None) -> pd.DataFrame:
        """Every addressable component, in order of execution: name, type, resolution (pixels), depth.

        Args:
          type: of component, such as `head`, `res`, `skip` or `time`; None: all.

        Raises:
          ConfigError: a type that no component has.
        """
        return describing.component_table(self.denoiser.components(), type)

    def ablate(self, what: What, with_: str = "zero", images: Given = None) -> "Model":
        """Components replaced.

        Args:
          what: a name, a regular expression that whole names match, several of these, or a table with their
            names, such as `components(type="head")`.
          with_: `zero`; or `mean`, over 16 images (or all, if there are fewer) at the same timestep and
            position.
          images: that the mean is over: a folder, file or array; None: see `images.eval_images`.

        Raises:
          ConfigError: another ablation, or a name or pattern that matches nothing.
        """
        return self._changed(changes.ablated(self, what, with_, images))

    def scale(self, what: What, factor: float) -> "Model":
        """Activations of components multiplied by `factor`, which takes the place of an earlier one.

        Args:
          what: as in `ablate`.
          factor: any finite number; 1: unchanged, 0: ablated, 2: doubled, below 0: turned round.

        Raises:
          ConfigError: no finite number, or a name or pattern that matches nothing.
        """
        return self._changed(changes.scaled(self, what, factor))

    def temperature(self, what: What, value: float) -> "Model":
        """Attention logits of heads divided by `value`.

        Args:
          what: heads, as in `ablate`.
          value: above 0; above 1 patterns are flatter, below 1 sharper.

        Raises:
          ConfigError: a value of 0 or less, or components that are no heads.
        """
        return self._changed(changes.tempered(self, what, value))

    def add(self, component: str, direction: AnyArray, strength: float = 1.0) -> "Model":
        """`strength * direction` added to one component's activation, at every position.

        Args:
          component: its name.
          direction: one number per channel of the component, or an array of its whole activation; see
            `directions.add_direction`.
          strength: a finite factor; below 0: away from the direction.

        Raises:
          ConfigError: a name that no component has, or a direction that does not fit it.
        """
        return self._changed(changes.directed(self, component, direction, strength))

    def patch(self, what: What, source: Given) -> "Model":
        """Activations of components replaced by those on other images: image i goes into sample i.

        Args:
          what: as in `ablate`.
          source: a folder, file or array of images, as many as are sampled; those that the model was trained
            on are left out.

        Raises:
          ConfigError: a name or pattern that matches nothing, or images that don't fit the network.
        """
        return self._changed(changes.patched(self, what, source))

    def during(self, low: int, high: int) -> "Model":
        """All that is done is done only where low <= t < high, t = 0 being the least noise; a later window
        takes the place of an earlier one.

        Raises:
          ConfigError: no whole numbers, or a window that holds no timestep of the model.
        """
        return self._changed(changes.windowed(self, low, high))

    def untouched(self) -> "Model":
        """The model without intervention."""
        return self._changed(changes.Change(self.denoiser.identity, {}))

    def sample(
        self,
        n: int = 8,
        *,
        seed: int = 0,
        steps: int | None = None,
        condition: Any = None,
        precision: Precision = "float32",
    ) -> Samples:
        """`n` images by DDIM; see `sampling.sample`. Equal seeds begin with equal noise.

        Args:
          condition: one entry per image, such as a list of classes; None: every class in turn.
          precision: of products, see `core.devices`. What it changes is measured on the first images and
            stated with the samples.
        """
        return drawing.draw(self, n, seed=seed, steps=steps, condition=condition, precision=precision)

    def predict(self, x_t: Images, t: int | Sequence[int] | AnyArray, condition: Any = None) -> jax.Array:
        """The noise in `x_t`, whatever the network was trained to output.

        Args:
          x_t: noisy images, `(images, height, width, channels)`.
          t: one timestep for all images, or one per image, integers in [0, T).
          condition: of a network that takes one, an entry per image, such as a list of classes.

        Raises:
          ConfigError: images of another shape, timesteps or classes out of range, a condition of another
            number of images, or several timesteps where replacements come from images.
        """
        return predicting.predict(self, x_t, t, condition)

    def sweep(
        self,
        images: Given = None,
        *,
        n: int | None = None,
        ablation: str = "zero",
        components: What | None = None,
        timesteps: int = 8,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> "result.Result":
        """Ablates one component at a time and measures the denoising loss.

        Args:
          images: a folder, file or array; None: held-out images where they can be made, else the model's own
            samples; see `images.eval_images`.
          n: how many images, each at every timestep; None: all that are given, or half of them where
            others are taken for replacements, at most 16; of prepared ones all.
          ablation: `zero`, `mean`, `resample`, `noise` or `optimal`.
          components: as `what` of `ablate`; None: all.
          timesteps: how many, evenly spread in log-SNR.
          seed: of the noise.
          folder: where what is computed is kept, so that the same call goes on after an interruption; None:
            the user's cache.

        Raises:
          ConfigError: a number out of range, an unknown ablation or component, or a model under an
            intervention (sweep `untouched()`).
          DataError: too few images, or images that can't be read without a guess.
        """
        return result.sweep(
            self,
            images,
            n=n,
            ablation=ablation,
            components=components,
            timesteps=timesteps,
            seed=seed,
            folder=folder,
        )

    def screen(
        self,
        images: Given = None,
        *,
        n: int | None = None,
        timesteps: int = 4,
        seed: int = 0,
        random_vectors: int = 4,
        precision: Precision = "float32",
    ) -> "screening.Screen":
        """A first ranking of all components by gradients; its time does not grow with their number.

        Args:
          images, timesteps, seed: as in `sweep`; None: samples that are stored with the model, if any are.
          n: how many images; None: all that are given, at most 8, of prepared ones all.
          random_vectors: their number, for estimates of curvature; more are steadier and take longer.
          precision: of products, see `core.devices`; what it changes is measured and stated with the scores.

        Raises:
          ConfigError, DataError: as of `sweep`.
        """
        return screening.screen(
            self,
            images,
            n=n,
            timesteps=timesteps,
            seed=seed,
            random_vectors=random_vectors,
            precision=precision,
        )

    def activations(
        self,
        images: Given = None,
        *,
        sites: str = ".*",
        timesteps: reading.Timesteps = None,
        n: int | None = None,
    ) -> xr.Dataset:
        """Activations of sites on `n` noised images; None: all that are given, at most 16.

        See `reading.activations`.
        """
        return reading.activations(self, images, sites=sites, timesteps=timesteps, n=n)

    def attention(
        self,
        images: Given = None,
        *,
        heads: str = ".*",
        timesteps: reading.Timesteps = None,
        n: int | None = None,
    ) -> xr.Dataset:
        """Attention patterns of heads on `n` noised images; None: all that are given, at most 4.

        See `reading.attention`.
        """
        return reading.attention(self, images, heads=heads, timesteps=timesteps, n=n)

    def component(self, name: str) -> Component:
        """One component by its name, or an error with the closest names."""
        return component_at(self.denoiser.components(), name)

    def _changed(self, change: changes.Change) -> "Model":
        return dataclasses.replace(self, intervention=change.intervention, sources=change.sources)

    def __repr__(self) -> str:
        return describing.line(self)

    def _repr_html_(self) -> str:
        return describing.html(self)
