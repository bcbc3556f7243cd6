"""Imports a checkpoint of others: `python -m experiments.import_checkpoint --from=FOLDER --to=WORKDIR`.

FOLDER is a diffusers `UNet2DModel` or pipeline (config.json, diffusion_pytorch_model.safetensors,
scheduler_config.json); or a state dict as model.safetensors, of guided-diffusion or improved-diffusion beside
its flags (config.json, config.yaml, or the command line as flags.txt), of ddim beside its config.yaml, of
lucidrains' Unet beside a config.json that says image_size, of EDM beside one that says sigma_data. Or it is
OWNER/NAME of the Hugging Face hub, if that lies in the hub's own cache already; nothing is downloaded.
What files leave open is stated by flags; what is not stated is assumed, and printed with the word ASSUMED.
Noise levels and the prediction are not assumed where no file says them: before anything is drawn or examined
they are asked for.
How its training images were cropped no file says: `--set=data.preprocessing.crop=ddim` (center-140, ...).
Afterwards WORKDIR/model is like a trained model: give it to experiments.sample and experiments.sweep as
--model. Who has only a pickle (.bin, .pt) and trusts it converts it first; the error that names it shows how.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

from mechdiff.core import keys
from mechdiff.core.config import DataConfig, ExperimentConfig, to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.data import to_bytes
from mechdiff.models import conditions, load, pretrained
from mechdiff.models.denoiser import Examinable
from mechdiff.models.pretrained import builders, hub_cache
from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.storage import exported, files, image_grid
from mechdiff.study.condition_sources import CLASS_NAMES as CLASS
from mechdiff.sweeps.execution import drawing, forecast

from . import _launch

FROM = flags.DEFINE_string(
    "from", None, "Folder of the foreign model, or OWNER/NAME of the hub, downloaded before.", required=True
)
TO = flags.DEFINE_string("to", None, "Folder in which the model is put, as model/.", required=True)
SAMPLES = flags.DEFINE_integer("samples", 4, "Images drawn for its sample sheet; 0: none.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "DDIM steps of each; default: 50, at most T.", lower_bound=1)
flags.DEFINE_string("weights", None, "Which of several: raw, ema, a variant such as fp16, or a file's name.")
flags.DEFINE_enum("dialect", None, tuple(adm_options.DIALECTS), "Whose defaults absent ADM flags have.")
flags.DEFINE_enum(
    "noise_schedule", None, ("linear", "scaled_linear", "cosine"), "Noise levels, where no file says."
)
flags.DEFINE_integer("noise_steps", None, "How many noise levels there are.", lower_bound=2)
flags.DEFINE_float("beta_start", None, "Variance added at the first of them.")
flags.DEFINE_float("beta_end", None, "Variance added at the last of them.")
flags.DEFINE_enum(
    "prediction", None, ("epsilon", "v_prediction", "sample"), "What the network outputs, where no file says."
)
flags.DEFINE_enum(
    "condition", None, ("last", "first"), "Where condition channels lie: behind the noisy image, or before."
)
CLASS_NAMES = flags.DEFINE_list("class_names", [], "What its classes are called, in order, with commas.")
flags.DEFINE_boolean("null_class", None, "Whether the last class stands for no class.")
flags.DEFINE_boolean("rescale_timesteps", None, "Whether an ADM network is fed t * 1000 / noise steps.")
idle = {
    "unet": "the network is that of the files; flags state what they leave open (--help)",
    "diffusion": "give --noise_schedule, --noise_steps, --beta_start or --beta_end",
    "train": "nothing is trained",
} | {
    f"data.{field.name}": "of data only data.preprocessing is recorded"
    for field in dataclasses.fields(DataConfig)
    if field.name != "preprocessing"
}


def stated() -> pretrained.Stated:
    """The statements of the flags on the model."""
    names = (field.name for field in dataclasses.fields(pretrained.Stated))
    return pretrained.Stated(**{name: flags.FLAGS[name].value for name in names})


def main(config, workdir):
    source, target = Path(FROM.value), Path(TO.value)
    imported = pretrained.read(hub_cache.snapshot(source) or source, stated())
    denoiser = builders.denoiser_of(imported, source.name)
    report(imported, denoiser, config)
    if imported.asks and SAMPLES.value:
        raise ConfigError(f"{source}: {imported.asks}; --samples=0 reads it without drawing anything")
    files.ensure_writable(target)
    about = ExperimentConfig(
        name=source.resolve().name,
        seed=config.seed,
        data=DataConfig(name="unknown", n_train=0, n_test=0, preprocessing=config.data.preprocessing),
        unet=builders.unet_of(imported),
        diffusion=imported.diffusion,
    )
    saved = to_dict(about)
    if isinstance(imported, pretrained.ImportedFunction):
        saved[load.IMPORTED_FUNCTION] = {"layout": imported.layout, "options": imported.options}
    record = {load.IMPORTED: imported.facts, **class_names(denoiser)}
    sheet = {}
    if SAMPLES.value:
        key = keys.stream(jax.random.key(config.seed), "samples")
        drawn = to_bytes(drawing.draw_samples(denoiser, key, SAMPLES.value, STEPS.value))
        sheet[image_grid.SHEET] = image_grid.png(image_grid.sheet(drawn))
    folder = exported.export_model(
        target / "model", imported.params, saved, record, dtype=imported.dtype, extras=sheet
    )
    print(folder)
    return {"model": folder, "layout": imported.layout, "notes": list(imported.notes)}


def class_names(denoiser: Examinable) -> dict[str, list[str]]:
    """The entry of a record with the names that are stated, one for each class."""
    names, classes = CLASS_NAMES.value, conditions.taken(denoiser.network).classes
    if names and len(names) != classes:
        raise ConfigError(f"--class_names has {len(names)} names, but {denoiser.name} has {classes} classes")
    return {CLASS: names} if names else {}


def report(imported, denoiser: Examinable, config: ExperimentConfig) -> None:
    """What was read, and how much memory examining it takes."""
    count = sum(leaf.size for leaf in jax.tree.leaves(imported.params))
    print(f"{imported.layout}: {count / 1e6:.1f} M parameters, stored as {imported.dtype}")
    forecast.print_memory_forecast(denoiser, config.sweep)
    for note in imported.notes:
        print(note)


if __name__ == "__main__":
    _launch.run(main)
