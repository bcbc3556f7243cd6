"""Measures the loss as a function of the gate of one component at a time (scaled down, off and up).

`python -m experiments.sweep_scaling --model=checkpoints/cpu16-synthetic-seed0 --components='.*skip'`
Prints for every component the relative loss increase (%, pooled over timesteps) at every gate, with its 95 %
interval over images (or people, where they are known); 1 leaves it alone, 0 replaces it by zeros.
Result: WORKDIR/scaling.zarr and .json.
"""

from absl import flags

from mechdiff.analysis import effects
from mechdiff.cli import tables
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.models.denoiser import selected_components
from mechdiff.sweeps import scaling

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
COMPONENTS = flags.DEFINE_string("components", ".*", "Regular expression of their names.")
GATES = flags.DEFINE_list("gates", [str(value) for value in scaling.GATE_VALUES], "Gates to try.")
least_images = 2
idle = _flags.all_but(*_opening.FOLLOWED) | {"sweep.ablations": _flags.BY_ZERO}


def main(config, workdir):
    try:
        gates = [float(value) for value in GATES.value]
    except ValueError as error:
        raise ConfigError(
            f"--gates={','.join(GATES.value)}: {error}; give numbers such as 0,0.5,1,2"
        ) from None
    gates = scaling.as_gates(gates)
    use_all_cores()
    denoiser, _, images, eval_set = _opening.opened(
        _opening.without_references(config),
        workdir,
        MODEL.value,
        CELEBA.value,
        IMAGES.value,
        check=lambda denoiser: selected_components(denoiser, COMPONENTS.value),
    )
    chosen = selected_components(denoiser, COMPONENTS.value)
    curves = scaling.scaling_curves(
        denoiser, eval_set, chosen, gates, block=config.sweep.image_block, folder=workdir / "pieces"
    )
    curves = images.with_people(curves)
    _opening.save(workdir, "scaling", curves, config, models=[denoiser.name], inputs=images.label)
    by_gate = curves.rename(gate="ablation")
    pooled = {f"gate {gate:g}": effects.pooled_interval(by_gate, gate, config.seed) for gate in gates}
    rows = tables.interval_rows("component", curves["component"].values, pooled)
    scored = _opening.scored(images, curves)
    tables.print_records(f"{denoiser.name}: relative loss increase (%) by gate, {scored}", rows)
    return {"folder": workdir, "curves": rows}


if __name__ == "__main__":
    _launch.run(main)
