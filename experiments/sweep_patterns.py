"""Does it matter where heads attend? Replaces the attention pattern of one head at a time.

`python -m experiments.sweep_patterns --model=checkpoints/cpu16-synthetic-seed0`
Patterns become uniform, the identity (each position attends to itself only), or those of another image
(frozen); the values that heads read stay. Prints for every head the relative loss increase (%) under each,
pooled over timesteps, with 95 % intervals over images. Result: WORKDIR/patterns.zarr and .json.
"""

import numpy as np
from absl import flags

from mechdiff.analysis import effects
from mechdiff.cli import tables
from mechdiff.core.devices import use_all_cores
from mechdiff.sweeps import attention_patterns

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)
SOURCES = flags.DEFINE_list(
    "sources", list(attention_patterns.PATTERN_SOURCES), "What takes the place of a pattern."
)
least_images = 2
idle = _flags.all_but(*_opening.FOLLOWED) | {"sweep.ablations": "give --sources=LIST"}


def main(config, workdir):
    attention_patterns.check_sources(SOURCES.value)
    use_all_cores()
    denoiser, _, images, eval_set = _opening.opened(
        _opening.without_references(config),
        workdir,
        MODEL.value,
        CELEBA.value,
        IMAGES.value,
        check=lambda denoiser: attention_patterns.check_network(denoiser, SOURCES.value),
    )
    swept = attention_patterns.pattern_effects(
        denoiser,
        eval_set,
        ablations=SOURCES.value,
        block=config.sweep.image_block,
        folder=workdir / "pieces",
    )
    swept = images.with_people(swept)
    _opening.save(workdir, "patterns", swept, config, models=[denoiser.name], inputs=images.label)
    pooled = {source: effects.pooled_interval(swept, source, config.seed) for source in SOURCES.value}
    largest_first = np.argsort(-pooled[SOURCES.value[0]].estimate)
    rows = tables.interval_rows("head", swept["component"].values, pooled, largest_first)
    scored = _opening.scored(images, swept)
    tables.print_records(
        f"{denoiser.name}: relative loss increase (%) with patterns replaced, {scored}", rows
    )
    return {"folder": workdir, "heads": rows}


if __name__ == "__main__":
    _launch.run(main)
