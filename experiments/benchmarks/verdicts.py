"""Whether the verdicts of a study stand where its losses are as wrong as a reduced precision makes them.

`python -m experiments.benchmarks.verdicts --measured=runs/p --study=checkpoints/study --workdir=runs/v`

`--measured` is what `precision` has filled: sweeps of the same images in float32 and in other precisions.
From them come relative errors of losses, by component and timestep. The sweeps of `--study`, in float32, are
then made as wrong, and every claim is judged anew, once for each of these:
  drawn            every image of every network has the errors of a measured network and image, all
                   components' together with that of the clean loss, at the nearest timestep that was measured
  up, down         every ablated loss is wrong by the largest measured error of its component and timestep,
                   in the same direction everywhere: worse than any sweep that was measured
  by component     the same, with a random sign for each component, equal in all networks and at all timesteps
  by network       the same, with a random sign for each component of each network
Errors were measured under zero ablation and are taken for the other ablations too; untrained networks and
random channel sets are made wrong as well. Not touched: statistics of attention and roles, which are computed
in float32 at every precision, and circuits, whose search would have to be run anew.
Result: WORKDIR/verdicts.json; what is there, of the same study and errors, is not judged again.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from absl import flags
from jaxtyping import Float, Int

from experiments import _launch
from mechdiff.core.errors import DataError
from mechdiff.storage import digests, files, labelled
from mechdiff.study import claims, results_folder
from mechdiff.study.claims.verdicts import Claim
from mechdiff.study.network_results import NetworkResults

MEASURED = flags.DEFINE_string("measured", None, "WORKDIR of `precision`.", required=True)
STUDY = flags.DEFINE_string("study", "checkpoints/study", "Results folder whose claims are judged.")
DRAWN, UP, DOWN, BY_COMPONENT, BY_NETWORK = "drawn", "up", "down", "by component", "by network"
ARMS = (DRAWN, UP, DOWN, BY_COMPONENT, BY_NETWORK)
AS_IT_IS = "float32"


class Errors(NamedTuple):
    """Relative errors of losses at one precision, of `cell`s: images of networks.

    Attributes:
      components, timesteps: of the axes.
      loss: of ablated losses; clean: of those without ablation.
    """

    components: tuple[str, ...]
    timesteps: Int[np.ndarray, " t"]
    loss: Float[np.ndarray, "component t cell"]
    clean: Float[np.ndarray, "t cell"]

    def largest(self) -> Float[np.ndarray, "component t"]:
        """Largest error of a loss against the clean one of its image."""
        return np.abs((1 + self.loss) / (1 + self.clean) - 1).max(-1)


def relative_errors(exact: xr.Dataset, reduced: xr.Dataset) -> Errors:
    """Of one network, from two sweeps of the same images under the same random numbers."""
    order = ("component", "t", "image")
    losses = [s["loss"].sel(ablation="zero").transpose(*order).values for s in (exact, reduced)]
    clean = [s["clean_loss"].transpose(*order[1:]).values for s in (exact, reduced)]
    ratios = [after.astype(np.float64) / before - 1 for before, after in (losses, clean)]
    return Errors(tuple(map(str, exact["component"].values)), exact["t"].values, *ratios)


def joined(errors: Sequence[Errors]) -> Errors:
    """Of several networks with the same components and timesteps."""
    loss, clean = (np.concatenate([getattr(e, name) for e in errors], -1) for name in ("loss", "clean"))
    return errors[0]._replace(loss=loss, clean=clean)


def measured(folder: Path, components: Sequence[str]) -> dict[str, Errors]:
    """Precision -> errors of all networks below `folder/sweeps` that have these components.

    Raises:
      DataError: there is none.
    """
    by_precision: dict[str, dict[str, xr.Dataset]] = {}
    for store in sorted((folder / "sweeps").glob("*/*.zarr")):
        sweep = labelled.read(store)
        whole = bool(np.isfinite(sweep["loss"].values).all())
        if whole and [str(name) for name in sweep["component"].values] == list(components):
            by_precision.setdefault(store.parent.name, {})[sweep.attrs["denoiser"]] = sweep
    exact = by_precision.pop(AS_IT_IS, {})
    pairs = {
        name: [
            relative_errors(exact[network], sweep) for network, sweep in sweeps.items() if network in exact
        ]
        for name, sweeps in by_precision.items()
    }
    if not any(pairs.values()):
        raise DataError(f"{folder} holds no pairs of sweeps of the study's components; run `precision` there")
    return {name: joined(errors) for name, errors in pairs.items() if errors}


Wrong = Callable[[xr.Dataset], xr.Dataset]


def drawn(errors: Errors, rng: np.random.Generator, sweep: xr.Dataset) -> xr.Dataset:
    """A sweep whose images each have the errors of a measured one."""
    nearest = _nearest(errors, sweep)
    cells = rng.integers(errors.clean.shape[-1], size=(len(nearest), sweep.sizes["image"]))
    loss = errors.loss[:, nearest[:, None], cells]
    clean = errors.clean[nearest[:, None], cells]
    return _scaled(sweep, 1 + loss, 1 + clean)


def shifted(errors: Errors, signs: Float[np.ndarray, " component"], sweep: xr.Dataset) -> xr.Dataset:
    """A sweep whose ablated losses are all wrong by the largest measured error, in these directions."""
    largest = errors.largest()[:, _nearest(errors, sweep), None]
    clean = np.ones((sweep.sizes["t"], sweep.sizes["image"]))
    return _scaled(sweep, 1 + signs[:, None, None] * largest * clean, clean)


def _nearest(errors: Errors, sweep: xr.Dataset) -> Int[np.ndarray, " t"]:
    return np.abs(sweep["t"].values[:, None] - errors.timesteps).argmin(1)


def _scaled(
    sweep: xr.Dataset, loss: Float[np.ndarray, "component t image"], clean: Float[np.ndarray, "t image"]
) -> xr.Dataset:
    factors = xr.DataArray(loss, dims=("component", "t", "image"))
    losses = (sweep["loss"].astype(np.float64) * factors).transpose(*sweep["loss"].dims)
    clean_losses = sweep["clean_loss"].astype(np.float64) * xr.DataArray(clean, dims=("t", "image"))
    clean_losses = clean_losses.transpose(*sweep["clean_loss"].dims)
    return sweep.assign(loss=losses.astype(np.float32), clean_loss=clean_losses.astype(np.float32))


def _shifted_sets(errors: Errors, signs: np.ndarray, sets: xr.Dataset) -> xr.Dataset:
    """Pooled relative loss increases (%) of random channel sets, as wrong as the components they match."""
    largest = xr.DataArray(signs * errors.largest().max(-1), dims="component")
    increases = sets["relative_increase"]
    moved = (increases + (100 + increases) * largest).transpose(*increases.dims)
    return sets.assign(relative_increase=moved.astype(np.float32))


def made_wrong(arm: str, errors: Errors, networks: Sequence[NetworkResults]) -> list[NetworkResults]:
    """The networks of a study with losses as wrong as `arm` says, always the same."""
    rng = np.random.default_rng(0)
    count = len(errors.components)
    common = {UP: np.ones(count), DOWN: -np.ones(count), BY_COMPONENT: rng.choice([-1.0, 1.0], count)}
    changed = []
    for network in networks:
        signs = common.get(arm, rng.choice([-1.0, 1.0], count))
        wrong: Wrong = functools.partial(shifted, errors, signs)
        if arm == DRAWN:
            wrong = functools.partial(drawn, errors, rng)
        control, sets = network.control, network.random_sets
        changed.append(
            dataclasses.replace(
                network,
                sweep=wrong(network.sweep),
                control=None if control is None else wrong(control),
                random_sets=None if sets is None else _shifted_sets(errors, signs, sets),
            )
        )
    return changed


def facts(answers: Sequence[Claim]) -> dict[str, dict]:
    """What is kept of each claim."""
    kept = ("verdict", "estimate", "interval", "p_adjusted")
    return {claim.id: {name: getattr(claim, name) for name in kept} for claim in answers}


def _digest(networks: Sequence[NetworkResults], errors: Mapping[str, Errors]) -> str:
    """Of all that the verdicts come from, but the attention and circuits of each network by its name."""
    arrays = {f"{network.name} loss": network.sweep["loss"].values for network in networks}
    arrays |= {f"{setting} errors": of_setting.loss for setting, of_setting in errors.items()}
    return digests.digest_arrays(arrays)


def table(judged: Mapping[str, Mapping[str, dict]]) -> str:
    """Every claim in float32; then how far its estimate moves at most at each precision, in units of half of
    its interval, and where another verdict is reached."""
    exact = judged[AS_IT_IS]
    lines = [f"{'claim':14}{'verdict':22}{'estimate':>10}  largest move, in half widths of the interval"]
    for claim, before in exact.items():
        estimate, low, high = _numbers(before)
        moves: dict[str, float] = {}
        turned = []
        for arm, answers in judged.items():
            if arm == AS_IT_IS:
                continue
            setting = arm.split(", ")[0]
            move = 2 * abs(_numbers(answers[claim])[0] - estimate) / (high - low)
            moves[setting] = float(np.fmax(moves.get(setting, 0.0), move))
            if answers[claim]["verdict"] != before["verdict"]:
                turned.append(f"{arm}: {answers[claim]['verdict']}")
        shown = ", ".join(f"{setting} {move:.2g}" for setting, move in moves.items())
        lines.append(
            f"{claim:14}{before['verdict']:22}{estimate:10.3g}  {shown}; "
            f"{'; '.join(turned) or 'the same verdict in all'}"
        )
    return "\n".join(lines)


def _numbers(claim: Mapping) -> Float[np.ndarray, " 3"]:
    """Estimate and interval; JSON has no NaN, but null."""
    return np.array([claim["estimate"], *claim["interval"]], dtype=float)


def main(config, workdir):
    networks = [examined.results for examined in results_folder.read(Path(STUDY.value))[1]]
    errors = measured(Path(MEASURED.value), [str(name) for name in networks[0].sweep["component"].values])
    for setting, of_setting in errors.items():
        largest, cells = of_setting.largest().max(), of_setting.clean.shape[-1]
        print(f"{setting}: errors of {cells} images of networks, at most {largest:.2g} of a loss")
    path, digest = files.ensure_writable(workdir) / "verdicts.json", _digest(networks, errors)
    saved = files.read_json(path) if path.exists() else {}
    judged = saved["judged"] if saved.get("of") == digest else {}

    def judge(name: str, studied: Sequence[NetworkResults]) -> None:
        print(name, file=sys.stderr, flush=True)
        judged[name] = facts(claims.evaluate(studied))
        files.write_json(path, {"of": digest, "judged": judged})

    if AS_IT_IS not in judged:
        judge(AS_IT_IS, networks)
    for arm, setting in itertools.product(ARMS, errors):
        if f"{setting}, {arm}" not in judged:
            judge(f"{setting}, {arm}", made_wrong(arm, errors[setting], networks))
    print(table(judged))


if __name__ == "__main__":
    _launch.run(main)
