"""Scales components down, off and up, and measures what becomes of the loss.

`python -m experiments.sweep_scaling --model=checkpoints/cpu16-synthetic-seed0 --components='.*skip'`
Prints for every component the relative loss increase (%, pooled over timesteps) at every gate; 1 leaves it
alone, 0 replaces it by zeros.
Result: WORKDIR/doses.zarr and .json.
"""

from absl import flags

from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.interventions.components import select
from mechdiff.sweeps import scaling

from . import _launch

MODEL = flags.DEFINE_string("model", None, _launch.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _launch.IMAGES_HELP)
COMPONENTS = flags.DEFINE_string("components", ".*", "Regular expression of their names.")
DOSES = flags.DEFINE_list("doses", [str(dose) for dose in scaling.GATE_VALUES], "Gates to try.")


def main(config, workdir):
    use_all_cores()
    denoiser, _, given, eval_set = _launch.opened(config, workdir, MODEL.value, CELEBA.value, IMAGES.value)
    names = select(denoiser.identity, COMPONENTS.value)
    chosen = [one for one in denoiser.components() if one.name in names]
    try:
        tried = [float(dose) for dose in DOSES.value]
    except ValueError as error:
        raise ConfigError(
            f"--doses={','.join(DOSES.value)}: {error}; give numbers such as 0,0.5,1,2"
        ) from None
    found = scaling.scaling_curves(denoiser, eval_set, chosen, tried, block=config.sweep.image_block)
    _launch.save(workdir, "doses", found, config, models=[denoiser.name], inputs=given.label)
    change = found["loss"].mean("image") / found["clean_loss"].mean("image") - 1
    pooled = (100 * change).mean("t").transpose("component", "dose")
    print(f"{denoiser.name}: relative loss increase (%) by gate, {len(given.scored)} images ({given.label})")
    print(f"{'component':22}" + "".join(f"{dose:>10g}" for dose in tried))
    for name, curve in zip(found["component"].values, pooled.values, strict=True):
        print(f"{name!s:22}" + "".join(f"{value:>10.2f}" for value in curve))


if __name__ == "__main__":
    _launch.run(main)
