"""Does it matter where heads look? Replaces the attention pattern of one head at a time.

`python -m experiments.sweep_patterns --model=checkpoints/cpu16-synthetic-seed0`
Patterns become uniform, the identity (each place sees itself alone), or those of another image (frozen);
what the head reads there stays. Prints for every head the relative loss increase (%) under each, pooled over
timesteps, with 95 % intervals over images. Result: WORKDIR/patterns.zarr and .json.
"""

import numpy as np
from absl import flags

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.core.devices import use_all_cores
from mechdiff.sweeps import attention_patterns

from . import _launch

MODEL = flags.DEFINE_string("model", None, _launch.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _launch.IMAGES_HELP)
KINDS = flags.DEFINE_list(
    "kinds", list(attention_patterns.PATTERN_SOURCES), "What takes the place of a pattern."
)


def main(config, workdir):
    use_all_cores()
    denoiser, _, given, eval_set = _launch.opened(config, workdir, MODEL.value, CELEBA.value, IMAGES.value)
    block = config.sweep.image_block
    found = attention_patterns.pattern_effects(denoiser, eval_set, kinds=KINDS.value, block=block)
    _launch.save(workdir, "patterns", found, config, models=[denoiser.name], inputs=given.label)
    weights = stats.bootstrap_weights(len(given.scored), seed=config.seed)
    pooled = {}
    for kind in KINDS.value:
        clean, loss = effects.losses(found, kind)
        pooled[kind] = stats.bootstrap(lambda w: effects.pooled_relative_increase(clean, loss, w), weights)  # noqa: B023
    print(
        f"{denoiser.name}: pooled Deg% with patterns replaced, {len(given.scored)} pictures ({given.label})"
    )
    print(f"{'head':22}" + "".join(f"{kind:>28}" for kind in pooled))
    order = np.argsort(-next(iter(pooled.values())).estimate)
    for i in order:
        cells = [f"{one.estimate[i]:.2f} [{one.low[i]:.2f}, {one.high[i]:.2f}]" for one in pooled.values()]
        print(f"{found['component'].values[i]!s:22}" + "".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    _launch.run(main)
