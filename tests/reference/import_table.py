"""What `pretrained.read` does with many configurations: the table in `mechdiff/models/pretrained/README.md`.

    PYTHONPATH=tests python -m reference.import_table          prints the table
    PYTHONPATH=tests python -m reference.import_table --write  puts it into the README

Each row is a folder made from the networks frozen in `pretrained.npz`, one thing changed. The test of the
table (`tests/models/pretrained/test_table.py`) makes them anew and compares.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.numpy import save_file

from mechdiff.core.errors import MechdiffError
from mechdiff.models import conditions, pretrained
from mechdiff.models.pretrained import Stated, builders
from mechdiff.models.pretrained.files import configs
from mechdiff.models.pretrained.lucidrains.noise_levels import betas_of

from .make_pretrained_reference import draw

FROZEN = Path(__file__).parent / "pretrained.npz"
FOREIGN = FROZEN.with_name("foreign.npz")
README = Path(__file__).parents[2] / "mechdiff" / "models" / "pretrained" / "README.md"
BEGIN, END = "<!-- table begins -->", "<!-- table ends -->"
MAX_LENGTH = 150  # characters of an outcome in the table


class Row(NamedTuple):
    """A configuration: a frozen network with something changed.

    Attributes:
      network: its name in `pretrained.npz`.
      what: the change, for a reader.
      options: put into its config, None: taken out (`DROP`).
      edit: of its tensors.
      place: of the folder's files; see `written`.
      stated: beside the files.
    """

    network: str
    what: str
    options: Mapping[str, Any] = {}
    edit: Callable[[dict], dict] = dict
    place: Callable[[Path, dict, dict], Path] | None = None
    stated: Mapping[str, Any] = {}


DROP = object()


def prefixed(*prefixes: str) -> Callable[[dict], dict]:
    """The tensors under each prefix; those of later ones changed."""
    return lambda state: {p + k: v + i for i, p in enumerate(prefixes) for k, v in state.items()}


def half(state: dict) -> dict:
    return {name: value.astype(np.float16) for name, value in state.items()}


def grouped(state: dict) -> dict:
    return {name.replace("to_qkv", "fn.fn.to_qkv"): value for name, value in state.items()}


def without(*names: str) -> Callable[[dict], dict]:
    return lambda state: {k: v for k, v in state.items() if k not in names}


def with_betas(state: dict) -> dict:
    betas = betas_of(LEVELS["beta_schedule"], LEVELS["timesteps"])
    return state | {"betas": betas.astype(np.float32)}


def file(name: str, text: str | None = None, weights: str = "") -> Callable[[Path, dict, dict], Path]:
    """The config under another name, or as another text."""

    def place(folder: Path, config: dict, state: dict) -> Path:
        (folder / name).write_text(json.dumps(config) if text is None else text)
        save_file(state, folder / (weights or stem(config)))
        return folder

    return place


def command_line(folder: Path, config: dict, state: dict) -> Path:
    flags = " \\\n".join(f"--{name} {value}" for name, value in config.items())
    return file("flags.txt", f'MODEL_FLAGS="{flags}"\npython sample.py $MODEL_FLAGS --use_ddim True')(
        folder, config, state
    )


def dumped(folder: Path, config: dict, state: dict) -> Path:
    """As ddim's `main.py` writes its config: an `argparse.Namespace` of such, lists perhaps tuples."""
    text = yaml.dump(config | {"data": argparse.Namespace(**config["data"])})
    return file("config.yml", text.replace("ch_mult:", "ch_mult: !!python/tuple"))(folder, config, state)


def stem(config: dict) -> str:
    return "diffusion_pytorch_model.safetensors" if "_class_name" in config else "model.safetensors"


def beside(scheduler: dict, sub: str = "", index: dict | None = None, extra: str = "") -> Callable:
    """A scheduler in the folder; or a pipeline, the network in `unet/`."""

    def place(folder: Path, config: dict, state: dict) -> Path:
        home = folder / sub
        home.mkdir(exist_ok=True)
        file("config.json")(home, config, state)
        target = folder / "scheduler" if sub else folder
        target.mkdir(exist_ok=True)
        (target / "scheduler_config.json").write_text(json.dumps(scheduler))
        if index is not None:
            (folder / "model_index.json").write_text(json.dumps(index))
        if extra:
            (folder / extra).mkdir()
        return folder

    return place


def both(folder: Path, config: dict, state: dict) -> Path:
    for name, factor in (("unet", 1), ("unet_ema", 2)):
        (folder / name).mkdir()
        file("config.json")(folder / name, config, {k: factor * v for k, v in state.items()})
    return folder


def variant(*names: str) -> Callable[[Path, dict, dict], Path]:
    def place(folder: Path, config: dict, state: dict) -> Path:
        (folder / "config.json").write_text(json.dumps(config))
        for name in names:
            save_file(state, folder / name)
        return folder

    return place


def pickle_only(folder: Path, config: dict, state: dict) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "network-snapshot.pkl").write_bytes(b"\x80\x04")
    return folder


def broken(state: dict) -> dict:
    return state | {"conv_in.bias": np.full_like(state["conv_in.bias"], np.nan)}


def inside(folder: Path, config: dict, state: dict) -> Path:
    (folder / "checkpoint-9").mkdir()
    file("config.json")(folder / "checkpoint-9", config, state)
    return folder


S = "upsample_heads"  # guided-diffusion, flags of the scripts
C = "classes"  # guided-diffusion, arguments of the class, with classes
U = "unet2d_table"  # diffusers, with classes
J = "unet2d_joined"  # diffusers, conditioned by channels
DDIM = "ddim"
L, LA = "lucidrains", "lucidrains_all"
EDM = ("edm_adm", "edm_ddpmpp")
OF_EDM = {"sigma_data": 0.5, "precond": "edm"}
LEVELS = {"objective": "pred_v", "beta_schedule": "sigmoid", "timesteps": 100}
RGB = {"channels": 3}
BETAS = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100, "beta_schedule": "linear"}
LINEAR = beside(BETAS)
DPM = BETAS | {"_class_name": "DPMSolverMultistepScheduler"}
CM = {"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40, "rho": 7.0}
CM |= {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
TWICE = '{"_class_name": "UNet2DModel", "sample_size": 8, "sample_size": 16}'
SHARDS = tuple(f"diffusion_pytorch_model-0000{part}-of-00002.safetensors" for part in (1, 2))
STATED = {"noise_schedule": "cosine", "noise_steps": 50, "prediction": "epsilon"}
SAMPLING = {"model_path": "a.pt", "timestep_respacing": "250", "use_ddim": True}
NOT_RESCALED = {"diffusion_steps": 4000, "rescale_timesteps": "false"}
CROSS = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
FEWER = {"num_channels": DROP, "num_res_blocks": DROP, "channel_mult": DROP}
COSINE = {"noise_schedule": "cosine"}
ROWS = [
    Row(S, "as its command line", place=command_line),
    Row(S, "flags as YAML", place=file("config.yaml")),
    Row(S, "numbers and booleans as text", {"num_channels": "32", "class_cond": "False"}),
    Row(S, "a boolean as `yes`", {"use_new_attention_order": "yes"}),
    Row(S, "a boolean as `maybe`", {"use_new_attention_order": "maybe"}),
    Row(S, "attention_resolutions as a number", {"attention_resolutions": 4}),
    Row(S, "attention_resolutions as a list", {"attention_resolutions": [4]}),
    Row(S, "attention_resolutions as `[4, 8]` in text", {"attention_resolutions": "[4, 8]"}),
    Row(S, "attention_resolutions null", {"attention_resolutions": None}),
    Row(S, "channel_mult as a list of text", {"channel_mult": ["1", "2"]}),
    Row(S, "channel_mult of a mapping", {"channel_mult": {"0": 1}}),
    Row(S, "num_channels 32.5", {"num_channels": 32.5}),
    Row(S, "paths and options of sampling", SAMPLING),
    Row(S, "a misspelt option", {"num_chanels": 32}),
    Row(S, "flags in sections", {"model": {"num_head_channels": -1}, "diffusion": {"steps": 1000}}),
    Row(S, "one of training set twice", {"train": {"batch_size": 8}, "sampling": {"batch_size": 4}}),
    Row(S, "an option set twice, differently", {"num_heads": 2, "model": {"num_heads": 4}}),
    Row(S, "a section of its teacher", {"teacher": {"predict_xstart": True}}),
    Row(S, "steps beside nothing of diffusion", {"steps": 50}),
    Row(S, "a variable that is not defined", place=file("flags.txt", "train.py --lr 1 $FLAGS")),
    Row(S, "4000 steps, rescale_timesteps absent", {"diffusion_steps": 4000}),
    Row(S, "the same, stated", {"diffusion_steps": 4000}, stated={"dialect": "improved-diffusion"}),
    Row(S, "4000 steps, rescale_timesteps `false` as text", NOT_RESCALED),
    Row(S, "channels and blocks absent", FEWER),
    Row(S, "predict_xstart", {"predict_xstart": True}),
    Row(S, "stated otherwise than its file", COSINE, stated={"noise_schedule": "linear"}),
    Row(S, "float16", edit=half),
    Row(S, "names under `module.`", edit=prefixed("module.")),
    Row(S, "names under `_orig_mod.`", edit=prefixed("_orig_mod.")),
    Row(S, "raw and averaged in one file", edit=prefixed("model.", "ema.")),
    Row(S, "the same, stated", edit=prefixed("model.", "ema."), stated={"weights": "ema"}),
    Row(S, "a tensor missing", edit=without("out.2.bias")),
    Row(S, "class_cond without a table", {"class_cond": True}),
    Row(S, "only `ema_0.9999_100.safetensors`", place=variant("ema_0.9999_100.safetensors")),
    Row(S, "two files of weights", place=variant("ema_0.9999_100.safetensors", "model000100.safetensors")),
    Row(S, "only a pickle", place=pickle_only),
    Row(S, "three dimensions", {"dims": 3}),
    Row(S, "options of consistency training, a teacher", {"training_mode": "edm", "sigma_max": 80.0}),
    Row(S, "a consistency model", {"training_mode": "consistency_distillation", "sigma_min": "0.002"}),
    Row(S, "its weights' schedule alone", {"weight_schedule": "karras"}),
    Row("super_resolution", "super-resolution flags"),
    Row("super_resolution", "image_size beside large_size", {"image_size": 32}),
    Row("super_resolution", "small_size without large_size", {"large_size": DROP}),
    Row("half_multiplier", "multipliers of 0.5, arguments of the class"),
    Row("half_multiplier", "learned variances denied", {"out_channels": 3}),
    Row("rescaled", "improved-diffusion, 4000 steps rescaled"),
    Row(C, "classes, num_classes=5"),
    Row(C, "num_classes absent", {"num_classes": DROP}),
    Row(C, "num_classes=4 of a table of 5", {"num_classes": 4}),
    Row(C, "class_cond `False` with a table", {"class_cond": "False"}),
    Row(C, "the last class is the null class", stated={"null_class": True}),
    Row(U, "no scheduler"),
    Row(U, "the same, stated", stated=STATED),
    Row(U, "a scheduler beside it", place=LINEAR),
    Row(U, "a saved pipeline", place=beside(BETAS, "unet", {"unet": ["diffusers", "UNet2DModel"]})),
    Row(U, "a pipeline with a vqvae/", place=beside(BETAS, "unet", {}, "vqvae")),
    Row(U, "unet/ and unet_ema/", place=both),
    Row(U, "unet/ and unet_ema/, averages stated", place=both, stated={"weights": "ema"}),
    Row(U, "only the variant fp16", place=variant("diffusion_pytorch_model.fp16.safetensors")),
    Row(U, "v prediction, zero terminal SNR",
        place=beside(BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})),
    Row(U, "trained betas", place=beside({"trained_betas": [0.1, 0.2, 0.3]})),
    Row(U, "betas of DPMSolverMultistepScheduler", place=beside(DPM)),
    Row(U, "EulerDiscreteScheduler, cosine",
        place=beside({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "squaredcos_cap_v2"})),
    Row(U, "flow matching", place=beside({"_class_name": "FlowMatchEulerDiscreteScheduler"})),
    Row(U, "EDM's scheduler", place=beside({"_class_name": "EDMEulerScheduler"})),
    Row(U, "a consistency model's scheduler", place=beside(CM)),
    Row(U, "the same, sigma_min as text", place=beside(CM | {"sigma_min": "tiny"})),
    Row(U, "a consistency model, its prediction stated", place=beside(CM), stated={"prediction": "sample"}),
    Row(U, "1,000,000,000 steps", place=beside(BETAS | {"num_train_timesteps": 10**9})),
    Row(U, "zero terminal SNR of 1000 linear betas",
        place=beside({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True})),
    Row(U, "NaN in a tensor", edit=broken),
    Row(U, "names under `denoiser.`, an unknown wrapper", edit=prefixed("denoiser.")),
    Row(U, "a dialect stated", stated={"dialect": "improved-diffusion"}),
    Row(U, "an option twice, differently", place=file("config.json", TWICE)),
    Row(U, "two shards without their index", place=variant(*SHARDS)),
    Row(U, "the network one folder down", place=inside),
    Row(U, "clip_sample as text", place=beside(BETAS | {"clip_sample": "False"})),
    Row(U, "a prediction of another name", place=beside(BETAS | {"prediction_type": "v-prediction"})),
    Row(U, "an unknown option of the scheduler", place=beside(BETAS | {"beta_stop": 0.1})),
    Row(U, "num_class_embeds absent", {"num_class_embeds": DROP}),
    Row(U, "num_class_embeds as text", {"num_class_embeds": "5"}),
    Row(U, "the last class is the null class", stated={"null_class": True}),
    Row(U, "another activation", {"act_fn": "gelu"}),
    Row(U, "an activation that diffusers has not", {"act_fn": "elu"}),
    Row(U, "Fourier features of time", {"time_embedding_type": "fourier"}),
    Row(U, "blocks of another kind", CROSS),
    Row(U, "UNet2DConditionModel", {"_class_name": "UNet2DConditionModel"}),
    Row(U, "images that are not square", {"sample_size": [8, 16]}),
    Row(U, "a boolean as text", {"flip_sin_to_cos": "True"}),
    Row("unet2d_number", "class_embed_type `timestep`"),
    Row("unet2d_vector", "class_embed_type `identity`"),
    Row(U, "class_embed_type `projection`", {"class_embed_type": "projection"}),
    Row(J, "five channels in, three out"),
    Row(J, "the same, stated", stated={"condition": "last"}),
    Row(J, "the same, stated the other way", stated={"condition": "first"}),
    Row(U, "a condition stated that is not there", stated={"condition": "last"}),
    Row(U, "four channels in and out", {"in_channels": 4, "out_channels": 4}),
    Row(DDIM, "as its YAML", place=file("config.yaml")),
    Row(DDIM, "as its trainer dumps it, an object", place=dumped),
    Row(DDIM, "sections that share names", {"training": {"batch_size": 128}, "sampling": {"batch_size": 64}}),
    Row(DDIM, "quadratic betas", {"diffusion": {"beta_schedule": "quad", "num_diffusion_timesteps": 100}}),
    Row(DDIM, "no section of diffusion", {"diffusion": DROP}),
    Row(DDIM, "images not rescaled", {"data": {"image_size": 8, "rescaled": False}}),
    Row(DDIM, "an unknown section", {"first_stage": {}}),
    Row(DDIM, "a numbered list for a section", {"diffusion": [1]}),
    Row(L, "a bare Unet, objective and noise levels in its config", LEVELS),
    Row(L, "its arguments stated as made, single for all levels", LEVELS | {"dim": 16, "attn_heads": 2}),
    Row(L, "the objective by a flag", LEVELS | {"objective": DROP}, stated={"prediction": "sample"}),
    Row(L, "no objective", LEVELS | {"objective": DROP}),
    Row(L, "no noise levels"),
    Row(L, "heads stated otherwise than its tensors", LEVELS | {"attn_heads": 4}),
    Row(L, "averaged, under `ema_model.model.`", LEVELS, edit=prefixed("ema_model.model.")),
    Row(L, "raw and averaged", LEVELS, edit=prefixed("online_model.model.", "ema_model.model.")),
    Row(L, "a release before 1.9", LEVELS, edit=grouped),
    Row(L, "images not normalized", LEVELS | {"auto_normalize": False}),
    Row(L, "options of another program", {"dim_mults": [1], "groups": 8}),
    Row(LA, "self-conditioned, learned variances and frequencies of time",
        LEVELS | RGB | {"objective": "pred_noise"}, edit=with_betas),
    Row(LA, "the same, its objective v", LEVELS | RGB, edit=with_betas),
    Row(LA, "the same, channels absent", LEVELS, edit=with_betas),
    Row(LA, "the same without betas, as continuous noise levels leave it", LEVELS | RGB),
    Row(L, "one of its biases missing", LEVELS, edit=without("ups.1.3.bias")),
    Row(LA, "the side not divisible", LEVELS | RGB | {"image_size": 6}),
    Row("edm_adm", "DhariwalUNet with classes", OF_EDM),
    Row("edm_ddpmpp", "SongUNet (DDPM++), augmentations", OF_EDM),
    Row("edm_ddpmpp", "arguments of its class beside them", OF_EDM | {"model_channels": 16, "num_blocks": 1}),
    Row("edm_ddpmpp", "arguments that contradict the tensors", OF_EDM | {"model_channels": 8}),
    Row("edm_ddpmpp", "FIR filters that leave no tensor", OF_EDM | {"resample_filter": [1, 3, 3, 1]}),
    Row("edm_ddpmpp", "precond absent", {"sigma_data": 0.5}),
    Row("edm_ddpmpp", "preconditioned as VP", OF_EDM | {"precond": "vp"}),
    Row("edm_ddpmpp", "noise levels of its own", OF_EDM | {"sigma_max": 10, "steps": 50}),
    Row(S, "options of EDM", {"img_resolution": 32, "num_channels": DROP}),
    Row(S, "a latent diffusion model", {"first_stage_config": {}, "num_channels": DROP}),
    Row(S, "options of k-diffusion", {"model": {"type": "image_v1", "sigma_sample_density": {}}}),
    Row(S, "options of MONAI", {"num_channels": [32, 64], "attention_levels": [False, True]}),
    Row(S, "options of score_sde", {"model": {"name": "ncsnpp", "scale_by_sigma": True}}),
    Row(S, "an empty config", place=file("config.json", "{}")),
    Row(S, "a config that is a list", place=file("config.json", "[1]")),
    Row(S, "a config that is not JSON", place=file("config.json", "{'a': 1}")),
    Row(S, "flags without a value", place=file("flags.txt", "--num_channels --num_heads 2")),
]  # fmt: skip


def outcome(row: Row, folder: Path) -> str:
    """What became of a configuration: `read: ...`, or the line of its refusal."""
    try:
        model = pretrained.read(written(row, folder), Stated(**row.stated))
    except MechdiffError as error:
        line = str(error).replace(str(folder) + "/", "").replace(str(folder), "FOLDER")
        return "refused: " + shortened(line)
    if isinstance(model, pretrained.ImportedFunction):
        return function(model)
    unet, levels = model.unet, model.diffusion
    facts = [f"{unet.prediction}, {levels.steps} {levels.schedule}"]
    facts += [f"{unet.classes} classes"] if unet.classes else []
    facts += ["a null class"] if unet.null_label is not None else []
    facts += [f"classes by {unet.class_embedding}"] if unet.class_embedding != "table" else []
    facts += [f"{unet.condition_channels} condition channels"] if unet.condition_channels else []
    facts += [f"t times {unet.timestep_scale}"] if unet.timestep_scale != 1 else []
    facts += [f"assumed: {len(model.assumed)}"] if model.assumed else []
    facts += ["variances dropped"] if any("variances are dropped" in note for note in model.notes) else []
    return "read: " + "; ".join(facts)


def function(model: pretrained.ImportedFunction) -> str:
    levels = model.diffusion
    denoiser = builders.build(model.layout, model.options, model.params, levels)
    facts = [f"{model.options.get('prediction', model.layout)}, {levels.steps} {levels.schedule}"]
    facts += [f"{len(denoiser.components())} components"]
    classes = conditions.taken(denoiser.network).classes
    facts += [f"{classes} classes"] if classes else []
    facts += [f"assumed: {len(model.assumed)}"] if model.assumed else []
    return "read: " + "; ".join(facts)


def shortened(line: str) -> str:
    line = " ".join(line.split()).replace("|", "/")
    return line if len(line) <= MAX_LENGTH else line[:MAX_LENGTH].rsplit(" ", 1)[0] + " ..."


def written(row: Row, folder: Path) -> Path:
    """The folder of a row."""
    foreign = row.network in (L, LA, *EDM)
    with np.load(FOREIGN if foreign else FROZEN) as stored:
        text = '{"image_size": 8}' if foreign else str(stored[f"{row.network}/config"])
        text = "{}" if row.network in EDM else text
        shapes = str(stored[f"{row.network}/shapes"])
    config = json.loads(text) if text.startswith("{") else dict(configs.flags_of(text))
    config |= row.options
    config = {name: value for name, value in config.items() if value is not DROP}
    state = row.edit(draw(json.loads(shapes)))
    return (row.place or file("config.json"))(folder, config, state)


def table() -> str:
    """All rows in Markdown."""
    lines = ["| network | what is special | outcome |", "| --- | --- | --- |"]
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(line_of(row, outcome(row, Path(folder))))
    return "\n".join(lines)


def line_of(row: Row, result: str) -> str:
    stated = "".join(f" (`--{name}={value}`)" for name, value in row.stated.items())
    return f"| {row.network} | {row.what}{stated} | {result} |"


if __name__ == "__main__":
    made = table()
    print(made)
    if "--write" in sys.argv:
        before, rest = README.read_text().split(BEGIN)
        README.write_text(before + BEGIN + "\n" + made + "\n" + END + rest.split(END)[1])
