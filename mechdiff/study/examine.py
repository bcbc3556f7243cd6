"""One model examined from end to end: inputs, mean activations, sweep, attention; all of it saved.

A results folder holds one sub-folder per subject:
  subject.json     what it is: config, training record, what its inputs are
  samples.png      pictures it draws, if any came with it
  sweep.zarr       `sweep.teacher_forced`; its pieces are collected in sweep/
  attention.zarr   `capture.attention_stats`
The report is made from these files alone.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from mechdiff.core import devices, keys
from mechdiff.core.config import DataConfig, ExperimentConfig, SweepConfig, to_dict
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import DataError
from mechdiff.core.types import AnyArray, Images, Shown
from mechdiff.data import load, to_bytes, to_float
from mechdiff.diffusion.samplers import sample
from mechdiff.diffusion.schedules import ddim_timesteps, make_schedule, timesteps_by_log_snr
from mechdiff.interventions import record
from mechdiff.models.unet import components, denoise, init_unet
from mechdiff.stats.clusters import PERSON
from mechdiff.storage import files, labelled
from mechdiff.sweeps import activations, denoising, optimal_ablation, replacements
from mechdiff.sweeps.execution import memory
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.training.loop import load_trained

SAMPLE_STEPS = 50  # DDIM
SAMPLE_BLOCK = 16  # pictures drawn together
NAMES = {"celeba": "CelebA", "tfds": "CelebA (TFDS)"}  # of data sets, for a reader
MOMENTS = 8  # times one fill in float32, that four sums in float64 take


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Pictures that a subject is examined on.

    Attributes:
      scored: in [-1, 1]; losses are measured on these.
      reference: others of the same kind, for mean activations and other fills.
      label: what they are, for a reader.
      nested: others for every level of a sweep, as `diffusion.at_level` takes them; None: the scored ones
        serve all levels.
      people: number of the person on each picture swept, `[images]` or nested `[levels, images]`; None where
        somebody is unknown.
    """

    scored: Images
    reference: Float[AnyArray, "references height width channels"]
    label: str
    nested: Float[AnyArray, "levels images height width channels"] | None = None
    people: Int[np.ndarray, "*levels images"] | None = None

    @property
    def labels(self) -> dict:
        """Coordinates of results of a sweep: who is on each picture, where that is known."""
        if self.people is None:
            return {}
        return {PERSON: (("t", "image")[-self.people.ndim :], self.people)}

    @property
    def scored_people(self) -> Int[np.ndarray, " images"] | None:
        """Who is on each scored picture; None where that is not known."""
        if self.people is None or self.people.ndim == 1:
            return self.people
        return self.people[0]

    @property
    def swept(self) -> Shown:
        """What sweeps over all levels show."""
        return self.scored if self.nested is None else self.nested

    def first(self, count: int) -> "Inputs":
        """With fewer scored, at every level."""
        nested = None if self.nested is None else self.nested[:, :count]
        people = None if self.people is None else self.people[..., :count]
        return dataclasses.replace(self, scored=self.scored[:count], nested=nested, people=people)


@dataclasses.dataclass(frozen=True)
class Examined:
    """What was examined, for those who go on: the subject, how it was trained, and its pictures."""

    subject: denoising.Subject
    trained: ExperimentConfig
    given: Inputs


def load_subject(model: Path, name: str = "") -> tuple[denoising.Subject, ExperimentConfig, dict]:
    """An exported model ready to be examined, its config, and its training record.

    Args:
      name: shown in results; the folder's if empty.
    """
    trained, params, identity, record = load_trained(model)
    schedule = make_schedule(trained.diffusion)
    return denoising.Subject(name or model.name, trained.unet, schedule, params, identity), trained, record


def untrained(subject: denoising.Subject, seed: int = 0) -> denoising.Subject:
    """A fresh network of the same configuration, to see what of a finding is due to training.

    Kernels that training starts at zero, with which no ablation could change the prediction, are drawn like
    the rest: normal, of variance 1 / fan-in.
    """
    params = jax.jit(init_unet, static_argnums=1)(jax.random.key(seed), subject.unet)[0]
    rng = np.random.default_rng(seed)

    def leaf(value):
        value = np.asarray(value)
        if value.ndim == 1 or value.any():
            return value
        return (rng.normal(size=value.shape) / np.sqrt(np.prod(value.shape[:-1]))).astype(value.dtype)

    return dataclasses.replace(subject, name=f"untrained-{subject.name}", params=jax.tree.map(leaf, params))


def announce(
    subject: denoising.Subject, config: SweepConfig, kinds: tuple[str, ...] | None = None, fills: int = 0
) -> None:
    """Prints what a sweep of a subject will take of the memory, before it begins.

    Args:
      kinds: of ablation, instead of those of the config.
      fills: how many fills of every site are held besides.
    Raises:
      ConfigError: it can't fit.
    """
    kinds = config.kinds if kinds is None else kinds
    runner = Engine(subject.unet, subject.schedule, subject.params, config.chunk)
    fills += config.timesteps * sum({"mean": 1, "noise": 2, "optimal": 1}.get(kind, 0) for kind in kinds)
    fills += config.image_block * ("resample" in kinds)
    fills += bool(fills) * (len(runner.devices) + MOMENTS)  # of one timestep: placed, and being averaged
    stacked = record.leave_one_out(subject.identity, components(subject.unet))[1]
    block = min(config.images, config.image_block)
    forecast = runner.forecast(stacked, block, fills and fills * memory.fill_bytes(subject.unet))
    print(forecast.line(), flush=True)
    forecast.require()


def draw(subject: denoising.Subject, key: jax.Array, count: int, steps: int = SAMPLE_STEPS) -> Images:
    """`count` pictures of a subject by DDIM, drawn in blocks of one shape; picture i depends on (key, i)."""
    size = subject.unet.image_size
    block = memory.at_once(min(SAMPLE_BLOCK, count), memory.row_bytes(subject.unet))
    shape = (block, size, size, subject.unet.in_channels)
    levels = ddim_timesteps(subject.schedule.steps, min(steps, subject.schedule.steps))

    mesh = devices.over(shape[0])

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(*[ALL] * 4, IMAGES), out_specs=IMAGES, check_vma=False
    )
    def block(params, identity, schedule, key, indices):
        predict = functools.partial(denoise, subject.unet, schedule, params, identity)
        own = (len(indices), *shape[1:])
        return sample(predict, schedule, key, own, timesteps=levels, indices=indices)

    network = devices.everywhere(mesh, (subject.params, subject.identity, subject.schedule))
    starts = range(0, count, shape[0])
    drawn = [np.asarray(block(*network, key, start + np.arange(shape[0]))) for start in starts]
    return np.concatenate(drawn)[:count]


def pictures(data: DataConfig, size: int, config: SweepConfig, cache: Path) -> Inputs:
    """Held-out pictures of a data set: those to score (`images`; nested, as many for every timestep), and the
    next `mean_images` to average over."""
    wanted = _to_score(config) + config.mean_images
    pixels, people, name = _held_out(data, size, wanted, cache)
    if len(pixels) < wanted:
        asked = f"sweep.images{' x sweep.timesteps' * config.nested} + sweep.mean_images = {wanted}"
        raise DataError(f"{name}: {len(pixels)} held-out pictures, but {asked}; lower them")
    return _inputs(to_float(pixels), config, f"held-out {NAMES.get(name, name)} pictures", people)


def _held_out(data: DataConfig, size: int, wanted: int, cache: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Test pictures; where they are too few, those of validation behind them: no training saw them either.

    Returns:
      The pictures, who is on each (-1: unknown), and the name of the data set.
    """
    parts = [load(dataclasses.replace(data, n_test=wanted), size, "test", 0, cache)]
    missing = wanted - len(parts[0])
    if missing:
        with contextlib.suppress(DataError):  # no such split
            parts.append(load(dataclasses.replace(data, n_test=missing), size, "validation", 0, cache))
    people = [np.full(len(part), -1) if part.people is None else part.people for part in parts]
    return np.concatenate([part.images for part in parts]), np.concatenate(people), parts[0].name


def own_samples(subject: denoising.Subject, config: SweepConfig, seed: int) -> Inputs:
    """Pictures that the subject itself draws, for when its data set is not at hand."""
    key = keys.stream(jax.random.key(seed), "own samples")
    drawn = to_float(to_bytes(draw(subject, key, _to_score(config) + config.mean_images)))
    return _inputs(drawn, config, "the model's own samples (not real pictures)")


def _to_score(config: SweepConfig) -> int:
    return config.images * (config.timesteps if config.nested else 1)


def _inputs(
    pixels: Images, config: SweepConfig, label: str, people: Int[np.ndarray, " count"] | None = None
) -> Inputs:
    scored, reference = np.split(pixels, [_to_score(config)])
    nested = scored.reshape(-1, config.images, *scored.shape[1:]) if config.nested else None
    people = None if people is None else people[: len(scored)]
    if people is not None and (people < 0).any():  # half-known clusters would pass for independent pictures
        people = None
    if people is not None and config.nested:
        people = people.reshape(-1, config.images)
    return Inputs(scored[: config.images], reference, label, nested, people)


def chooser(
    config: ExperimentConfig, celeba: str | None, cache: Path
) -> Callable[[denoising.Subject, ExperimentConfig], Inputs]:
    """How to choose the pictures a model is examined on: held-out ones of its own kind, or its own samples.

    Args:
      celeba: where real pictures lie; None: CelebA models are examined on what they draw.
    """

    def choose(subject: denoising.Subject, trained: ExperimentConfig) -> Inputs:
        data = trained.data
        if data.name != "synthetic":
            if not celeba:
                return own_samples(subject, config.sweep, config.seed)
            data = DataConfig(name="celeba", path=celeba)
        return pictures(data, subject.unet.image_size, config.sweep, cache)

    return choose


def kind_fills(
    subject: denoising.Subject,
    given: Inputs,
    timesteps,
    root: jax.Array,
    config: SweepConfig,
    shown: Shown | None = None,
) -> dict:
    """What each kind of ablation replaces components with: kind -> fills or a source of them.

    Args:
      shown: by the sweep, if not the scored pictures of `given`.
    """
    shown = given.scored if shown is None else shown
    reference = *subject.network, given.reference, timesteps, keys.stream(root, "mean noise")
    scored = *subject.network, shown, timesteps, keys.stream(root, "scored noise")
    make = {
        "mean": lambda: activations.activation_means(*reference),
        "resample": lambda: replacements.resample_fills(*scored, draws=config.draws),
        "noise": lambda: replacements.noise_fills(*reference, draws=config.draws),
        "optimal": lambda: optimal_ablation.optimal_fills(*reference, steps=config.optimal_steps),
    }
    return {kind: make[kind]() for kind in config.kinds if kind != "zero"}


def examine(
    name: str,
    model: Path,
    inputs: Callable[[denoising.Subject, ExperimentConfig], Inputs],
    config: SweepConfig,
    seed: int,
    folder: Path,
) -> Examined:
    """Everything about one trained model, saved in `folder`; finished pieces of a sweep are not done again.

    Several processes may examine one model into one `folder`: they share the sweep.

    Args:
      name: shown in the report.
      model: exported folder, see `checkpoint.export_model`.
      inputs: gives the pictures to examine it on.
      seed: of the noise.
    """
    subject, trained, record = load_subject(model, name)
    announce(subject, config)
    given = inputs(subject, trained)
    files.ensure_writable(folder)
    facts = {"inputs": given.label, "seed": seed, "trained_on": trained.data.name}
    sheet = model / "samples.png"  # a model of others may have come without
    about = {"name": name, "config": to_dict(trained), "record": record, "samples": sheet.is_file(), **facts}
    files.write_json(folder / "subject.json", about)
    (folder / "study.json").unlink(missing_ok=True)  # of an earlier run; `study` writes it anew
    if sheet.is_file():
        files.write_atomic(folder / "samples.png", sheet.read_bytes())

    timesteps = timesteps_by_log_snr(subject.schedule, config.timesteps)
    root = jax.random.key(seed)
    fills = kind_fills(subject, given, timesteps, root, config, given.swept)
    noise = keys.stream(root, "scored noise")
    swept = denoising.teacher_forced(
        subject, given.swept, timesteps, noise, folder / "sweep", config=config, fills=fills, facts=facts
    )
    attention = activations.attention_stats(*subject.network, given.swept, timesteps, noise)
    with files.hold(folder, wait=True):  # every process that shares the sweep comes here, with equal results
        seen = attention.assign_attrs(subject=name, **facts).assign_coords(given.labels)
        labelled.replace(folder / "attention.zarr", seen)
        labelled.replace(folder / "sweep.zarr", swept.assign_coords(given.labels))
    return Examined(subject, trained, given)
