"""What a study finds out about an examined network besides the sweep of its components.

Everything lies in the subject's folder, and is not made again when it is there and was made of the same. What
was asked for stands in study.json; results of earlier studies that were not asked for again are not read:
  activity.zarr        participation ratio, effective rank and variance of activations, per site and level
  control.zarr         the sweep of an untrained network of the same configuration on the same pictures
  control_attention.zarr
  circuit_KIND.zarr    circuits run to score the one that was found, see `scorecards.run`
  random_sets.zarr     what random sets of as many channels as each component cost
  roles.zarr           selectivity and roles of heads, and the effects behind them
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from mechdiff import circuits
from mechdiff.analysis import complexity, roles
from mechdiff.analysis.roles import matched_class, matched_sets, probes
from mechdiff.circuits import scorecards
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, SweepConfig, to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import PRNGKey
from mechdiff.data import OFFSETS, synthetic
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.interventions.components import Component
from mechdiff.models import untrained
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.stats.clusters import PERSON
from mechdiff.storage import digests, files, labelled, locks
from mechdiff.study.examine import Analysis
from mechdiff.study.inputs import EvalImages, replacement_values
from mechdiff.sweeps import activations, channel_moments
from mechdiff.sweeps.ablation import ablation_sweep, sweep_in_memory

SCORED = 0.9  # closeness, of `complexity.TAUS`, of the circuit that is scored
KNOCKOUTS, RANDOMS = 10, 40  # sets that a circuit is tried against
PROBED = 400  # faces that probes of factors are fitted on
BLOCK = 16  # faces drawn together


def run_study(examined: Analysis, config: ExperimentConfig, folder: Path) -> None:
    """Does for one subject what `config.study` asks for.

    Args:
      examined: of `examine.examine`, whose `folder` this is.
    """
    study, root = config.study, jax.random.key(config.seed)
    some = dataclasses.replace(examined, given=examined.given.first(study.images))
    levels = [int(t) for t in timesteps_by_log_snr(examined.denoiser.schedule, study.timesteps)]
    noise = keys.stream(root, "scored noise")
    makers: dict[str, Callable[[], xr.Dataset]] = {}
    if study.controls:
        makers["activity"] = lambda: activity(examined, levels, root)
        makers["control"] = lambda: control(some, config, noise, folder)
        makers["control_attention"] = lambda: control_attention(some, config, noise)
    for ablation in study.circuits:
        makers[f"circuit_{ablation}"] = lambda ablation=ablation: circuit(some, ablation, config, folder)
    if study.random_sets:
        makers["random_sets"] = lambda: random_sets(some, config, noise)
    if study.role_sets and _heads(examined):
        makers["roles"] = lambda: head_roles(some, config, levels, noise)
    key = _key(examined, config)
    for name, make in makers.items():
        _once(folder / f"{name}.zarr", key, make)
    with locks.lock(folder, wait=True):
        files.write_json(folder / "study.json", {"made_of": key, "results": list(makers)})


def activity(examined: Analysis, levels: Sequence[int], root: PRNGKey) -> xr.Dataset:
    """`complexity.OF_COVARIANCE` of the activations of every site, dims `measure, site, t`."""
    denoiser, given = examined.denoiser, examined.given
    before, noise = keys.stream(root, "mean noise"), keys.stream(root, "scored noise")
    means = activations.activation_means(denoiser, EvalSet(given.reference, levels, before))
    found = channel_moments.channel_moments(denoiser, EvalSet(given.scored, levels, noise), means=means)
    values = {name: complexity.site_values(found, name) for name in complexity.OF_COVARIANCE}
    cells = np.array([[values[name][site] for site in found] for name in values])
    axes = {"measure": list(values), "site": list(found), "t": np.asarray(levels)}
    return xr.Dataset({"value": (tuple(axes), cells)}, coords=axes)


def circuit(examined: Analysis, ablation: str, config: ExperimentConfig, folder: Path) -> xr.Dataset:
    """Finds the circuit on one half of the pictures and runs on the other what its measures need.

    Returns:
      As `scorecards.run`; attribute besides: `sizes`, of the circuits for `complexity.TAUS`.
    """
    root = jax.random.key(config.seed)
    asked = dataclasses.replace(config.sweep, timesteps=config.study.timesteps)
    halves = circuit_evaluators(examined.denoiser, examined.given, ablation, asked, root, folder / "circuits")
    found = {tau: circuits.discover(halves[0], tau) for tau in complexity.TAUS}
    runs = scorecards.run(halves[1], found[SCORED], KNOCKOUTS, RANDOMS, config.seed)
    people = examined.given.scored_people
    if people is not None:
        runs = runs.assign_coords({PERSON: ("image", people[len(people) // 2 :])})
    return runs.assign_attrs(sizes=[len(one.members) for one in found.values()])


def circuit_evaluators(
    denoiser: Denoiser,
    given: EvalImages,
    ablation: str,
    config: SweepConfig,
    root: PRNGKey,
    folder: Path | None,
) -> tuple[CircuitEvaluator, CircuitEvaluator]:
    """Trials on one half of the scored pictures, to find a circuit, and on the other, to score it.

    Every half has noise of its own; fills come from the reference pictures, or, where they are those of other
    images, from the same half.

    Raises:
      ConfigError: fewer than 4 pictures.
    """
    count = len(given.scored) // 2
    if count < 2:
        raise ConfigError(f"sweep.images={len(given.scored)} are too few to find and score circuits; give 4")
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.timesteps)
    config = dataclasses.replace(config, ablations=(ablation,))
    made = []
    for name, some in (("find", given.scored[:count]), ("score", given.scored[count:])):
        own = keys.stream(root, f"circuits: {name}")
        replacements = replacement_values(
            denoiser, dataclasses.replace(given, scored=some), timesteps, own, config
        )
        eval_set = EvalSet(some, timesteps, keys.stream(own, "scored noise"))
        block = min(config.image_block, len(some))
        made.append(
            CircuitEvaluator(
                denoiser, eval_set, ablation, replacements.get(ablation), folder=folder, block=block
            )
        )
    return tuple(made)


def head_roles(
    examined: Analysis, config: ExperimentConfig, levels: Sequence[int], noise: PRNGKey
) -> xr.Dataset:
    """Roles of all heads, with the effects they were judged by; dims `component, target, t, image`."""
    denoiser, given = examined.denoiser, examined.given
    chosen = _heads(examined)
    count = max(-(-config.study.role_sets // len(chosen)), roles.untrained_needed())
    fresh = [untrained.untrained(denoiser, config.seed + i) for i in range(count)]
    more = (
        face_targets(examined.trained, len(given.scored)) if examined.trained.data.name == "synthetic" else {}
    )
    eval_set = EvalSet(given.scored, levels, noise)
    found, effect = roles.examine(
        denoiser, eval_set, fresh, chosen, count=config.study.role_sets, seed=config.seed, **more
    )
    cells = ("component", "target")
    return effect.assign(
        selectivity=(cells, found.selectivity),
        role=("component", list(found.role)),
        adjusted=("component", found.adjusted),
    )


def control(some: Analysis, config: ExperimentConfig, noise: PRNGKey, folder: Path) -> xr.Dataset:
    """The sweep of an untrained network, its own for every training seed, at all levels swept."""
    fresh, levels = _fresh(some, config)
    asked = dataclasses.replace(config.sweep, images=len(some.given.scored))
    shown = some.given.swept
    replacements = replacement_values(fresh, some.given, levels, jax.random.key(config.seed), asked, shown)
    eval_set = EvalSet(shown, levels, noise)
    found = ablation_sweep(fresh, eval_set, folder / "control", config=asked, replacements=replacements)
    return found.assign_coords(some.given.labels)


def control_attention(some: Analysis, config: ExperimentConfig, noise: PRNGKey) -> xr.Dataset:
    """Attention statistics of the same network on the same pictures."""
    fresh, levels = _fresh(some, config)
    found = activations.attention_stats(fresh, EvalSet(some.given.swept, levels, noise))
    return found.assign_coords(some.given.labels)


def random_sets(some: Analysis, config: ExperimentConfig, noise: PRNGKey) -> xr.Dataset:
    """What random sets of as many channels cost: the size alone of a component, without what it does.

    Every component is compared with sets of its class (`roles.matched_class`): channels of other branches and
    skips of its resolution. They are shown the pictures of the first timestep that the sweep nests, at
    `study.timesteps` levels, as circuits are.

    Returns:
      Dataset with `damage`, pooled Deg% of each set, dims `ablation, component, set`.
    """
    denoiser, count = some.denoiser, config.study.random_sets
    levels = [int(t) for t in timesteps_by_log_snr(denoiser.schedule, config.study.timesteps)]
    asked = dataclasses.replace(config.sweep, images=len(some.given.scored))
    values = replacement_values(denoiser, some.given, levels, jax.random.key(config.seed), asked)
    chosen = components(denoiser.unet)
    classes = [matched_class(component, denoiser.identity) for component in chosen]
    names, stacked = matched_sets(chosen, chosen, denoiser.identity, count, config.seed)
    damage, eval_set = [], EvalSet(some.given.scored, levels, noise)
    for ablation in config.sweep.ablations:
        how = {"ablation": ablation, "replacements": values.get(ablation)}
        found = sweep_in_memory(denoiser, eval_set, stacked, **how, block=config.sweep.image_block)
        loss, clean = (np.asarray(x, np.float64).mean(-1) for x in (found.loss, found.clean_loss))
        pooled = 100 * (loss / clean - 1).mean(-1)
        of_class = {name: pooled[np.array(names) == name] for name in dict.fromkeys(names)}
        damage.append([of_class[name] for name in classes])
    return xr.Dataset(
        {"damage": (("ablation", "component", "set"), np.array(damage))},
        coords={
            "ablation": list(config.sweep.ablations),
            "component": [component.name for component in chosen],
            "class": ("component", classes),
        },
    )


def face_targets(trained: ExperimentConfig, count: int) -> dict:
    """What is known of synthetic faces: masks of the first held-out ones, probes fitted on those of training.

    Args:
      count: held-out faces.
    """
    reference = _faces(trained, OFFSETS["train"], PROBED)
    fitted = probes.fit_all(reference.image, reference.factors)
    masks = _faces(trained, OFFSETS["test"], count).masks
    return {"masks": masks, "parts": synthetic.PARTS, "probes": probes.as_arrays(fitted)}


def _fresh(some: Analysis, config: ExperimentConfig) -> tuple[Denoiser, np.ndarray]:
    """The untrained network and the levels it is examined at."""
    fresh = untrained.untrained(some.denoiser, some.trained.seed)
    return fresh, timesteps_by_log_snr(fresh.schedule, config.sweep.timesteps)


def _heads(examined: Analysis) -> list[Component]:
    return [one for one in components(examined.denoiser.unet) if one.component_type == "head"]


def _once(path: Path, key: str, make: Callable[[], xr.Dataset]) -> None:
    """Writes what `make` gives, unless what is there has this key."""
    with locks.lock(path.parent, wait=True):
        if not path.exists() or labelled.read(path).attrs.get("made_of") != key:
            labelled.replace(path, make().assign_attrs(made_of=key))


def _key(examined: Analysis, config: ExperimentConfig) -> str:
    """Digest of all that decides the numbers."""
    given, study = examined.given, dataclasses.replace(config.study, models=())
    return digests.digest_json(
        {
            **examined.denoiser.digests(),
            "pictures": digests.digest_arrays([given.swept, given.reference]),
            "asked": [config.seed, to_dict(config.sweep), to_dict(study)],
            "numerics": NUMERICS_VERSION,
        }
    )


def _faces(trained: ExperimentConfig, start: int, count: int) -> synthetic.Face:
    size, level, key = trained.unet.image_size, trained.data.complexity, jax.random.key(0)
    drawn = [
        synthetic.faces(key, np.int32(at + np.arange(BLOCK)), size, level)
        for at in range(start, start + count, BLOCK)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *drawn)
