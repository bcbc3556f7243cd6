"""Draws images from a trained model: `python -m experiments.sample --model=checkpoints/cpu32-celeba-seed0`.

`--ablate=REGEX` replaces the components whose names match by zero while drawing, from the same noise;
`--window=LOW,HIGH` limits that to timesteps LOW <= t < HIGH. Of a network with classes all are drawn in turn,
or `--label=NUMBER` alone; `--guidance=SCALE` draws towards them (1: not). Writes WORKDIR/samples.png.
`--set=sweep.precision=tf32` (or another) draws by products of that precision, and says what that changed.
"""

import dataclasses
import sys

import jax
import numpy as np
from absl import flags

from mechdiff.core import devices, keys
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.data import to_bytes
from mechdiff.interventions import build
from mechdiff.models import load
from mechdiff.storage import files, image_grid
from mechdiff.sweeps import precision
from mechdiff.sweeps.execution import drawing

from . import _flags, _launch

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
COUNT = flags.DEFINE_integer("count", 64, "Images.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "DDIM steps; default: 50, at most T.", lower_bound=1)
ABLATE = flags.DEFINE_string("ablate", "", "Regular expression of component names to leave out.")
WINDOW = flags.DEFINE_list("window", [], "Timesteps LOW,HIGH in which the ablation acts.")

LABEL = flags.DEFINE_integer("label", None, "The class that is drawn, from 0; default: all in turn.")
GUIDANCE = flags.DEFINE_float("guidance", 1.0, "Scale of classifier-free guidance; 0 is without classes.")
idle = _flags.all_but("precision") | {
    "sweep.images": "give --count=N",
    "sweep.timesteps": "give --steps=N",
    "sweep.ablations": _flags.BY_ZERO,
}


def main(config, workdir):
    use_all_cores()
    files.ensure_writable(workdir)
    denoiser, _, record = load.load_denoiser(MODEL.value)
    load.check_stated(record, denoiser.name)
    identity = denoiser.identity
    if ABLATE.value:
        identity = build.ablate(identity, ABLATE.value)
    if WINDOW.value and not ABLATE.value:
        raise ConfigError("--window limits what --ablate does; give that too")
    if WINDOW.value:
        try:
            low, high = map(int, WINDOW.value)
        except ValueError:
            raise ConfigError(f"--window={','.join(WINDOW.value)} is not LOW,HIGH") from None
        identity = build.windowed(identity, low, high)
        drawing.check_acts(identity.window, drawing.sampled_timesteps(denoiser, STEPS.value))
    denoiser = dataclasses.replace(denoiser, identity=identity)
    key = keys.stream(jax.random.key(config.seed), "own samples")
    labels = None if LABEL.value is None else np.full(COUNT.value, LABEL.value, np.int32)

    def draw(count):
        first = None if labels is None else labels[:count]
        return drawing.draw_samples(
            denoiser, key, count, STEPS.value, condition=first, guidance=GUIDANCE.value
        )

    setting = config.sweep.precision
    if line := devices.explanation(setting):
        print(f"warning: {line}", file=sys.stderr)
    drawn, error = precision.drawn(setting, draw, COUNT.value)
    if error:
        print(
            f"products in {setting}: pixels differ from float32's by {error:.2g} (root mean square) at most"
        )
    image_grid.save_sheet(workdir / image_grid.SHEET, to_bytes(drawn))
    print(workdir / image_grid.SHEET)
    return {"sheet": workdir / image_grid.SHEET, "precision_error": error}


if __name__ == "__main__":
    _launch.run(main)
