"""Which component carries which factor of a face? Exchanges activations between faces that differ in one.

`python -m experiments.interchange --model=checkpoints/cpu16-synthetic-seed0 --pairs=32`
Prints for every factor the components that carry most of it: the share of the difference between the two
predictions that one component's activation carries, with 95 % intervals over pairs of faces. A network with
classes is told that of the first face of each pair for both, also where they differ in a factor of the class.
Result: WORKDIR/interchange.zarr and .json.
"""

import jax
import numpy as np
from absl import flags

from mechdiff.core import keys
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.data.synthetic import FACTORS
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import load
from mechdiff.stats import few_images
from mechdiff.storage import files
from mechdiff.study import choosing, inputs
from mechdiff.sweeps import interchange

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
ONLY = flags.DEFINE_list("factors", list(FACTORS), "Which factors.")
PAIRS = flags.DEFINE_integer("pairs", 16, "Pairs of faces for each factor.", lower_bound=2)
TOP = flags.DEFINE_integer("top", 3, "Components shown for each factor.", lower_bound=1)
idle = _flags.all_but("timesteps") | {
    "sweep.images": "give --pairs=N",
    "sweep.ablations": "activations are exchanged",
}


def main(config, workdir):
    interchange.check_factors(ONLY.value)
    files.ensure_writable(workdir)
    use_all_cores()
    denoiser, trained, _ = load.load_denoiser(MODEL.value)
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.sweep.timesteps)
    key = keys.stream(jax.random.key(config.seed), "interchange")
    pairs = interchange.PairSet(key, ONLY.value, PAIRS.value, trained.data.complexity)
    pairs = _under_classes(denoiser, trained.data, pairs)
    effects = interchange.interchange_effects(denoiser, timesteps, pairs, folder=workdir / "pieces")
    _opening.save(workdir, "interchange", effects, config, models=[denoiser.name])
    _, shares = interchange.transfer_by_component(effects, seed=config.seed)
    few = few_images(PAIRS.value)
    print(f"{denoiser.name}: components that carry most of each factor, {PAIRS.value} pairs of faces{few}")
    carriers = {}
    for factor, estimate, low, high in zip(ONLY.value, shares.estimate, shares.low, shares.high, strict=True):
        if np.isnan(estimate).all():
            print(f"{factor:24}changes nothing in these faces")
            carriers[factor] = []
            continue
        most = np.argsort(-np.nan_to_num(estimate, nan=-np.inf))[: TOP.value]
        carriers[factor] = effects["component"].values[most].tolist()
        of_components = zip(carriers[factor], estimate[most], low[most], high[most], strict=True)
        print(f"{factor:24}" + "; ".join(_share(*numbers) for numbers in of_components))
    return {"folder": workdir, "carriers": carriers}


def _share(component, estimate, low, high):
    """The share of a factor that a component carries, with its interval."""
    interval = f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else "(few pairs show it: no interval)"
    return f"{component} {estimate:.2f} {interval}"


def _under_classes(denoiser, data, pairs):
    """The pairs under their classes, where the network takes these."""
    condition = inputs.conditioned_on(denoiser)
    if not condition:
        return pairs
    if data.name != "synthetic":
        raise ConfigError(
            f"{denoiser.name} is conditioned on {condition}, which is not known of the faces drawn here; "
            "take a network without, or one that was trained on classes of synthetic faces"
        )
    print(f"{denoiser.name} is told the class of a pair's first face ({data.classes}) for both of them")
    return interchange.labeled(pairs, data.classes, choosing.classes_for(denoiser, data))


if __name__ == "__main__":
    _launch.run(main)
