"""Further results on an examined network: controls, circuits, random channel sets and roles of heads.

Each is saved in the model's folder with a digest of all its inputs, and reused while that digest is the same.
study.json lists the results of the last study; of these files, readers open only those that it lists:
  activity.zarr          participation ratio, effective rank and variance of activations, by site and timestep
  control.zarr           sweep of an untrained network of the same configuration on the same images
  control_attention.zarr attention statistics of that untrained network
  circuit_ABLATION.zarr  circuits run to score the discovered one, see `scorecards.run`
  random_sets.zarr       relative loss increase of random sets of as many channels as each component
  roles.zarr             selectivity and roles of heads, and the effects that they are computed from
  pairs.zarr             components that make up for each other, see `circuits.backups`
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import xarray as xr

from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, to_dict
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.storage import digests, files, labelled, locks
from mechdiff.study import circuit_results, controls, role_results
from mechdiff.study.examine import DenoiserAndImages, finish
from mechdiff.sweeps.execution.provenance import result_key

# Result -> the field of `StudyConfig` that bears on it alone.
OWN_SETTING = {"random_sets": "random_sets", "roles": "role_sets", "pairs": "pairs"}


def run_study(examined: DenoiserAndImages, config: ExperimentConfig, folder: Path) -> None:
    """Computes and saves the results that `config.study` asks for, for one model.

    Args:
      examined: as `examine.examine` returned it.
      folder: the model's, in which that has saved its results; from the end on they are read as finished.
    """
    study, root = config.study, jax.random.key(config.seed)
    fewer = dataclasses.replace(examined, images=examined.images.first(study.images))
    timesteps = [int(t) for t in timesteps_by_log_snr(examined.denoiser.schedule, study.timesteps)]
    noise = keys.stream(root, "scored noise")
    makers: dict[str, Callable[[], xr.Dataset]] = {}
    if study.controls:
        makers["activity"] = functools.partial(controls.activity, examined, timesteps, root)
        makers["control"] = functools.partial(controls.control, fewer, config, noise, folder)
        makers["control_attention"] = functools.partial(controls.control_attention, fewer, config, noise)
    for ablation in study.circuits:
        makers[f"circuit_{ablation}"] = functools.partial(
            circuit_results.circuit, fewer, ablation, config, folder
        )
    if study.random_sets:
        makers["random_sets"] = functools.partial(
            controls.random_sets, fewer, config, noise, folder / "pieces"
        )
    if study.role_sets and role_results.heads(examined.denoiser):
        makers["roles"] = functools.partial(
            role_results.head_roles, fewer, config, timesteps, noise, folder / "pieces"
        )
    if study.pairs:
        makers["pairs"] = functools.partial(
            circuit_results.pairs, fewer, config, timesteps, noise, folder / "pieces"
        )
    for name, make in makers.items():
        labelled.save_once(folder / f"{name}.zarr", _key(examined, config, name), make)
    with locks.lock(folder, wait=True):
        files.write_json(folder / "study.json", {"results": list(makers)})
        finish(folder)


def _key(examined: DenoiserAndImages, config: ExperimentConfig, result: str) -> str:
    """SHA-256 of everything that decides the numbers of `result`.

    Some names in it, such as "pictures", are old ones: with today's, no saved result would be found. Settings
    of other results are left out, so that roles can be added to a study without computing the rest again.
    """
    images, sweep = examined.images, to_dict(config.sweep)
    names = ["images", "timesteps"]
    if result in OWN_SETTING:
        names.append(OWN_SETTING[result])
    study = {name: getattr(config.study, name) for name in names}
    if config.sweep.precision == "float32":  # a later field: results without it keep their names
        del sweep["precision"]
    decisive = ["condition", "reference_condition"]
    if result == "pairs" or result.startswith("circuit_"):
        decisive.append("people")
    about_images = {
        name: digests.digest_arrays(getattr(images, name))
        for name in decisive
        if getattr(images, name) is not None  # results on images of which nothing is known keep their names
    }
    if images.people is not None and circuit_results.halved(config, result):
        first = images.first(config.study.images).halves()[0]
        if first.tolist() != list(range(len(first))):  # until 2026-12-01 people could be in both halves
            about_images["halves"] = first.tolist()
    return result_key(
        examined.denoiser,
        pictures=digests.digest_arrays([images.swept, images.reference]),
        asked=[config.seed, sweep, study],
        **about_images,
    )
