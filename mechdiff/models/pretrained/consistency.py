"""UNets on continuous noise levels: consistency models (Song et al. 2023), and their teachers under EDM.

A folder holds what diffusers saves (a `UNet2DModel` under `CMStochasticIterativeScheduler`), or a state dict
of openai/consistency_models as model.safetensors with its flags, those of guided-diffusion and
`training_mode`, which says how c_skip and c_out are made. The network is our UNet, told 1000 ln(sigma) / 4;
it is examined through the names of its gates and of its attention's patterns.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechdiff.core.config import MAX_STEPS, DiffusionConfig, UNetConfig, from_dict, to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Features, PRNGKey, PyTree
from mechdiff.diffusion.parameterization import Parameterization
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.gates import named
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.pretrained.adm import reader as adm
from mechdiff.models.pretrained.adm.options import TABLE
from mechdiff.models.pretrained.adm.sections import flattened
from mechdiff.models.pretrained.diffusers import reader as diffusers
from mechdiff.models.pretrained.edm.reader import karras_levels
from mechdiff.models.pretrained.files import states
from mechdiff.models.pretrained.files.configs import option_names
from mechdiff.models.pretrained.files.folders import ForeignFolder
from mechdiff.models.pretrained.files.options import (
    Option,
    Options,
    anything,
    boolean,
    choice,
    integer,
    number,
    read_options,
)
from mechdiff.models.pretrained.imported import Imported, ImportedFunction, Stated
from mechdiff.models.stage_modules import enter, run_stage
from mechdiff.models.stages import stages
from mechdiff.models.traced import TracedDenoiser, wrap
from mechdiff.models.unet import init_shapes, init_unet

WHAT = "consistency"
STATED = ("weights", "null_class")
SCHEDULER = "CMStochasticIterativeScheduler"
KINDS = {  # training_mode -> what c_skip and c_out are
    "consistency_distillation": "consistency",
    "consistency_training": "consistency",
    "edm": "edm",
    "progdist": "edm",
}
LEVELS = {  # defaults of both programs
    "sigma_min": Option(0.002, number(1e-6, text=True)),
    "sigma_max": Option(80.0, number(1e-6, text=True)),
    "rho": Option(7.0, number(1.0, text=True)),
}
OF_SCHEDULER = LEVELS | {
    "_class_name": Option(SCHEDULER, choice(SCHEDULER), (SCHEDULER,)),
    "sigma_data": Option(0.5, number(1e-6)),
    "num_train_timesteps": Option(40, integer(2, MAX_STEPS)),
    "clip_denoised": Option(True, boolean(), (True,)),
    "s_noise": Option(1.0, anything()),
}
OF_FLAGS = LEVELS | {
    "training_mode": Option(None, choice(*KINDS), (None, *KINDS)),
    "learn_sigma": Option(False, boolean(text=True), (False,)),
}
TELLING = ("training_mode", "target_ema_mode", "weight_schedule", "distill_steps_per_iter", "start_scales")
TELLING += ("global_batch_size",)
TRAINING = (*TELLING, "scale_mode", "total_training_steps", "start_ema", "end_scales", "loss_norm")
DECIDED = {"diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False, "learn_sigma": False}
SIGMA_DATA = 0.5  # of openai/consistency_models, which has no flag for it
TIME_SCALE = 1000.0  # the network is given this many times EDM's ln(sigma) / 4
STEPS = 1000  # noise levels to choose from


@dataclasses.dataclass(frozen=True)
class Network:
    """Our UNet as a function of its parameters whose gates are named values: F(c_in x, 250 ln sigma)."""

    unet: UNetConfig

    @property
    def classes(self) -> int:
        """Number of classes; 0: unconditional."""
        return self.unet.classes

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class; None: there is none."""
        return self.unet.null_label

    def __call__(
        self, params: PyTree, x: Features, time: AnyArray, label: AnyArray | None = None
    ) -> Features:
        """`(batch, height, width, channels)`."""
        identity, stream = _identity(self.unet), enter(self.unet, params, x, time, condition=label)
        for stage in stages(self.unet):
            with named(stage.name):
                stream, _ = run_stage(self.unet, stage, params, identity, stream)
        return stream.h


@dataclasses.dataclass(frozen=True)
class Initializer:
    """`init(key)`, which draws parameters of a UNet; equal for equal UNets, which share compiled programs."""

    unet: UNetConfig

    def __call__(self, key: PRNGKey) -> PyTree:
        return init_unet(key, self.unet)[0]


def recognizes(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> bool:
    """Whether a network is of this layout, by its flags or by its scheduler."""
    by_scheduler = scheduler.get("_class_name") == SCHEDULER and config.get("_class_name") == "UNet2DModel"
    return by_scheduler or ("_class_name" not in config and _of_programs(config))


def _of_programs(config: Mapping[str, Any]) -> bool:
    """Whether options are of openai/consistency_models: guided-diffusion has neither the names nor that
    sampler of noise levels."""
    sections = (config, *(value for value in config.values() if isinstance(value, Mapping)))
    lognormal = any(section.get("schedule_sampler") == "lognormal" for section in sections)
    return lognormal or not option_names(config).isdisjoint(TELLING)


def read(source: ForeignFolder, stated: Stated) -> ImportedFunction:
    """The model in the folder `source`; errors as `pretrained.read`."""
    if "_class_name" in source.config:
        get = read_options(
            source.scheduler, OF_SCHEDULER, what=f"scheduler {SCHEDULER}", ignored=("steps_offset",)
        )
        kind, sigma_data = "consistency", get["sigma_data"]
        imported = diffusers.read(dataclasses.replace(source, scheduler={}), stated)
    else:
        flags, notes = flattened(source.config, frozenset({*TABLE, *OF_FLAGS, "model_channels"}))
        of_program = {name: value for name, value in flags.items() if name in OF_FLAGS}
        get = read_options(of_program, OF_FLAGS, what=WHAT)
        kind, sigma_data = _kind(get), SIGMA_DATA
        source = dataclasses.replace(source, config=_plain(flags), notes=(*source.notes, *notes))
        imported = adm.read(source, stated)
    if imported.unet.condition_channels:
        raise ConfigError(f"{WHAT}: a network conditioned by channels is not read")
    assumed = states.summary({name: get[name] for name in LEVELS if name not in get.stated})
    options = {
        "unet": to_dict(imported.unet),
        "kind": kind,
        "sigma_data": sigma_data,
        "sigma_min": get["sigma_min"],
        "image_size": imported.unet.image_size,
        "channels": imported.unet.in_channels,
        "prediction": kind,
    }
    fractions = np.linspace(0, 1, STEPS + 1)[1:]  # at sigma_min itself a consistency model returns its input
    levels = karras_levels(fractions, get["sigma_min"], get["sigma_max"], get["rho"])
    notes = _notes(imported, kind, get, assumed)
    return ImportedFunction(WHAT, options, imported.params, levels, imported.dtype, notes, assumed)


def build(
    options: Mapping[str, Any], params: PyTree, diffusion: DiffusionConfig, name: str
) -> TracedDenoiser:
    """The denoiser made from `ImportedFunction.options`, as read or as saved."""
    unet = from_dict(options["unet"], UNetConfig)
    scalings = {key: options[key] for key in ("sigma_data", "sigma_min")}
    kind = Parameterization(output=options["kind"], time_scale=TIME_SCALE, **scalings)
    x = np.zeros((1, unet.image_size, unet.image_size, unet.in_channels), np.float32)
    label = (np.zeros(1, np.int32),) if unet.classes else ()
    example = (x, np.zeros(1, np.int32), *label)
    schedule = make_schedule(diffusion)
    return wrap(
        Network(unet),
        params,
        schedule=schedule,
        example=example,
        name=name,
        parameterization=kind,
        init=Initializer(unet),
    )


def _kind(get: Options) -> str:
    if get["training_mode"] is None:
        raise ConfigError(
            f"{WHAT} option training_mode is absent, which decides c_skip and c_out, and no tensor tells it: "
            f"write {' or '.join(KINDS)}"
        )
    return KINDS[get["training_mode"]]


def _plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the network alone, as guided-diffusion has them. That flash attention, which the program
    always uses, has queries, keys and values one after another is guided-diffusion's new order."""
    of_program = {*OF_FLAGS, *TRAINING, "generator", "steps", "ts"}  # the last three are the sampler's
    kept = {
        name: v for name, v in flags.items() if name not in of_program and not name.startswith("teacher_")
    }
    return kept | DECIDED | {"use_new_attention_order": True}


def _notes(imported: Imported, kind: str, get: Options, assumed: tuple[str, ...]) -> tuple[str, ...]:
    """The notes of the network, without those on betas, which it does not have."""
    notes = [note for note in imported.notes if "scheduler_config.json: ASSUMED" not in note]
    scalings = "that return the input at sigma_min" if kind == "consistency" else "of EDM"
    notes.append(
        f"on continuous noise levels, sigma from {get['sigma_min']} to {get['sigma_max']}, with c_skip and "
        f"c_out {scalings}; examined through named values"
    )
    if assumed:
        notes.append(f"ASSUMED noise levels, the programs' defaults: {', '.join(assumed)}")
    return tuple(notes)


@functools.cache
def _identity(unet: UNetConfig) -> Intervention:
    """The intervention that changes nothing, in NumPy: where gates only name values, none of it is used."""
    shapes = init_shapes(unet)[1]

    def filled(leaves: Mapping[str, Any], value: float) -> dict[str, np.ndarray]:
        return {site: np.full(leaf.shape, value, np.float32) for site, leaf in leaves.items()}

    ones, zeros = filled(shapes.gate, 1), filled(shapes.replacement, 0)
    return Intervention(ones, zeros, filled(shapes.temperature, 1), ALWAYS)
