"""Finds the circuits of trained models, and scores them on other images.

`python -m experiments.circuits --model=checkpoints/cpu16-synthetic-seed0 --set=sweep.images=32`
For every model and ablation (sweep.ablations) one half of the scored images finds the circuit and
the other half scores it; then every circuit is tried in every model of the same components. Prints each
circuit's scores, and at the end a table with a line for each circuit. Results:
WORKDIR/circuits/NAME-ABLATION.json and .zarr, transfer-ABLATION.zarr; circuits that
were run are not run again.
"""

from absl import flags

from mechdiff import circuits
from mechdiff.circuits import robustness, scorecards
from mechdiff.cli import tables
from mechdiff.core import ranges
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models import load
from mechdiff.storage import files, labelled
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import circuit_results

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_multi_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
TAU = flags.DEFINE_float(
    "tau", 0.9, "Faithfulness match that a circuit must reach.", lower_bound=0.01, upper_bound=0.9999
)
EVERY = flags.DEFINE_bool("every_timestep", False, "At every timestep, not only on average over them.")
RANKING = flags.DEFINE_enum("ranking", "exact", circuits.RANKINGS, "How components are ranked at first.")
RANDOMS = flags.DEFINE_integer(
    "randoms", 40, "Random circuits to compare with.", lower_bound=20, upper_bound=ranges.MAX_RANDOM
)
REPEATS = flags.DEFINE_integer(
    "repeats", 10, "Resamples on which circuits are found again.", lower_bound=2, upper_bound=10_000
)
least_images = 4


def main(config, workdir):
    _opening.check_names([load.name_of(model) for model in MODEL.value])
    use_all_cores()
    folder = files.ensure_writable(workdir / "circuits")
    settings = circuit_results.CircuitSettings(
        TAU.value, EVERY.value, RANKING.value, RANDOMS.value, REPEATS.value
    )
    discovered, held_out, rows = {}, {}, []  # by ablation and network
    for model in MODEL.value:
        denoiser, _, images, _ = _opening.opened(config, workdir, model, CELEBA.value, IMAGES.value)
        for ablation in config.sweep.ablations:
            result = circuit_results.found_circuit(
                denoiser, images, ablation, config, folder / "run", settings
            )
            lines = [*scorecards.lines(result.scorecard), *robustness.lines(result.stability)]
            print("\n".join(lines), flush=True)
            rows.append(row(result.scorecard))
            manifest = run_manifest(to_dict(config), model=str(model), inputs=images.label)
            files.write_json(
                folder / f"{denoiser.name}-{ablation}.json", result.facts() | {"manifest": manifest}
            )
            labelled.replace(folder / f"{denoiser.name}-{ablation}.zarr", result.runs)
            discovered.setdefault(ablation, {})[denoiser.name] = result.circuit
            held_out.setdefault(ablation, {})[denoiser.name] = result.scorer
    for ablation, of_networks in discovered.items():
        if len(of_networks) == 1:
            break  # nowhere to transfer a circuit to
        moved = robustness.transfer(of_networks, held_out[ablation])
        labelled.replace(folder / f"transfer-{ablation}.zarr", moved)
        print("\n".join(robustness.transfer_lines(moved, ablation)))
    tables.print_records("circuits, scored on images that they were not found on (f: faithfulness)", rows)
    print(folder)
    return {"folder": folder, "circuits": rows}


def row(card: scorecards.Scorecard) -> dict:
    """A circuit's line in the table at the end."""
    return {
        "network": card.denoiser,
        "ablation": card.ablation,
        "members": len(card.members),
        "of": card.seen,
        "f": float(card.circuit.estimate),
        "95 %": (float(card.circuit.low), float(card.circuit.high)),
        "p (random)": float(card.p),
        "most needed": ", ".join(card.members[:3]),
    }


if __name__ == "__main__":
    _launch.run(main)
