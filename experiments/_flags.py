"""The flags that all launchers take, texts of those that many define, and how a command line is read.

The command `mechdiff` makes its options of `of` and `common`.
"""

import dataclasses
import math
import re
from pathlib import Path
from types import ModuleType

import jax
from absl import flags

from mechdiff.cli import hints
from mechdiff.core import old_names, presets, processes, ranges
from mechdiff.core.config import SweepConfig
from mechdiff.storage import files

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", "quickstart", f"Settings to start from: {', '.join(presets.PRESETS)}.")
flags.DEFINE_multi_string(
    "set", [], "Change a setting: section.field=value (may be given again; `mechdiff settings` lists all)."
)
flags.DEFINE_string("workdir", None, "Folder of the results, or gs:// or s3:// of one; default: runs/PRESET.")
flags.DEFINE_string("compilation_cache", None, "Folder in which JAX keeps compiled programs.")
flags.DEFINE_boolean("distributed", False, "Join the other processes of this SLURM job or TPU pod.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0: join the processes that name the same.")
flags.DEFINE_integer("processes", None, "With --coordinator: how many there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", lower_bound=0)
flags.DEFINE_float(
    "join_timeout",
    processes.JOIN_SECONDS,
    "Seconds until the other processes must have joined.",
    lower_bound=1,
)
flags.DEFINE_string("classes", "", "With --images: SUBFOLDER=NUMBER,... of their classes, or one NUMBER.")
flags.DEFINE_string("conditions", "", "With --images: folder of the images to go by, called as they are.")
flags.DEFINE_boolean("json", False, "The result as JSON on stdout; everything else on stderr.")
flags.DEFINE_boolean("quiet", False, "Show warnings and errors only.")
flags.DEFINE_string("log_file", None, "File to which every line shown is appended, also with --quiet.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

MODEL_HELP = "Folder of a trained model, a shipped name, or MODULE:FUNCTION of one that returns a denoiser."
CELEBA_HELP = "CelebA in its official layout, held-out images are taken; several folders with commas."
IMAGES_HELP = "A folder of images, or an .npy or .npz file, to examine on."
BY_ZERO = "it replaces by zero"  # for `idle`
OF_NETWORKS = ("unet", "train", "diffusion")  # sections of settings that training alone reads
SEED_ALONE = dict.fromkeys(("data", "sweep", *OF_NETWORKS), "of the settings it follows the seed alone")
NO_SETTINGS = dict.fromkeys(("seed", *SEED_ALONE), "it follows no settings")
PREPROCESSING, CLASSES, IMAGES = "data.preprocessing.", "data.classes", "sweep.images"
STUDIES = ("reproduce", "study", "examine")  # launchers that read the settings of section study
OF_STUDIES = f"it is for {', '.join(STUDIES[:-1])} and {STUDIES[-1]}"


def all_but(*followed: str) -> dict[str, str]:
    """For `idle`: the settings of sweeps but for those that a launcher follows."""
    others = (field.name for field in dataclasses.fields(SweepConfig) if field.name not in followed)
    return {f"sweep.{name}": "nothing there depends on it; leave it out" for name in others}


def of(module: ModuleType, script: str = "") -> list[flags.Flag]:
    """A launcher's own flags, by name.

    Args:
      script: its path, where it was started as a script.
    """
    by_module: dict[str, list[flags.Flag]] = FLAGS.flags_by_module_dict()
    return by_module.get(script if module.__name__ == "__main__" else module.__name__, [])


def common() -> list[flags.Flag]:
    """The flags that all launchers take."""
    return FLAGS.flags_by_module_dict()[__name__]


def parse(argv: list[str]) -> None:
    """Reads a command line into `FLAGS`, and switches the cache of compiled programs on.

    Raises:
      flags.Error: an unknown flag (the closest named), an empty or impossible value, a word that is no flag.
    """
    try:
        extra = FLAGS([_renamed(word) for word in argv])[1:]
    except flags.UnrecognizedFlagError as error:
        value = error.flagvalue.partition("=")[2]  # absl gives the whole word here
        meant = hints.meant(error.flagname, value or None, FLAGS)
        if meant is None:
            raise
        raise flags.Error(f"unknown flag --{error.flagname}; did you mean {meant}") from None
    except flags.IllegalFlagValueError as error:
        if missing := re.search(r"Flag (--\w+) must have a value other than None", str(error)):
            raise flags.Error(f"{missing[1]} is missing; see --help") from None
        word, boolean, _ = str(error).removeprefix("flag ").partition(": ('Non-boolean argument")
        if not boolean:
            raise
        name = word.partition("=")[0].removeprefix("--")
        raise flags.Error(f"{word} is neither true nor false; write --{name} or --no{name}") from None
    for name in FLAGS:
        if FLAGS[name].present and FLAGS[name].value == "":  # of a shell's variable that is not set, say
            raise flags.Error(f"--{name}= is empty; give a value, or leave it out")
        _check_number(name, FLAGS[name].value)
    if extra:
        raise flags.Error(f"unexpected argument {extra[0]!r}; write --flag=value (see --help)")
    _check_images(FLAGS["images"].value if "images" in FLAGS else None)
    if FLAGS.compilation_cache:
        folder = Path(FLAGS.compilation_cache).absolute()
        with files.plain_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # compiled programs are code: private
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _check_number(name: str, value: object) -> None:
    """Refuses what absl's bounds let through: NaN, and counts that no run would come to the end of."""
    if isinstance(value, float) and not math.isfinite(value):
        raise flags.Error(f"--{name}={value} is not a finite number")
    if isinstance(value, int) and abs(value) > ranges.MAX_COUNT:
        raise flags.Error(f"--{name}={value} is out of range; at most {ranges.MAX_COUNT}")


def settings_given() -> list[str]:
    """Names of the settings that the command line changes."""
    return [word.partition("=")[0].strip() for word in FLAGS["set"].value or ()]  # unparsed in tests


def check_settings(module: ModuleType, script: str) -> None:
    """Refuses --set of what has no effect in a launcher: of the settings or sections that it calls `idle`
    (name -> what to do instead), of studies elsewhere, of training where a trained network is examined.
    Where it has `least_images`, fewer are refused too."""
    launcher = _name(module)
    instead = getattr(module, "idle", {}) | ({} if launcher in STUDIES else {"study": OF_STUDIES})
    for word, name in zip(FLAGS.set or (), settings_given(), strict=True):
        idle = next((idle for idle in instead if name == idle or name.startswith(f"{idle}.")), None)
        if idle and word != f"sweep.ablations={FLAGS.ablation if 'ablation' in FLAGS else 'zero'}":
            raise flags.Error(f"--set={word} has no effect in {launcher}: {instead[idle]}")
        if name == IMAGES:
            least = getattr(module, "least_images", 1)
            _check_count(word, least() if callable(least) else least)
    if {"model", "before"} & {flag.name for flag in of(module, script)}:
        check_examining(launcher)


def _check_count(word: str, least: int) -> None:
    """Refuses fewer images than a launcher takes, which may be more than the setting itself allows."""
    number = word.partition("=")[2].strip()
    if number.removeprefix("-").isdecimal() and int(number) < least:
        raise flags.Error(f"{IMAGES} (-n)={number} is too small; at least {least}")


def check_examining(launcher: str) -> None:
    """Refuses --set of what a trained network brings with it, and of images, which flags name where they are
    examined: only how these are prepared, and CelebA's classes, are settings."""
    folders = [name for name in ("images", "celeba") if name in FLAGS and FLAGS[name].flag_type() == "string"]
    ways = " or ".join(f"--{name}=FOLDER" for name in folders)
    named = [name for name in folders if FLAGS[name].value]
    for word, name in zip(FLAGS.set or (), settings_given(), strict=True):
        section = name.partition(".")[0]
        if section in OF_NETWORKS:
            raise flags.Error(
                f"--set={word} has no effect on a network that is trained already; leave it out"
            )
        followed = named and (name.startswith(PREPROCESSING) or (name == CLASSES and _of_celeba(named)))
        if name.startswith(PREPROCESSING) and folders and not named:
            raise flags.Error(
                f"--set={word} has no effect without {ways}, whose images it is of; give that too"
            )
        if section == "data" and not followed:
            images = f"its images are those of {ways}" if ways else "it takes no images"
            raise flags.Error(f"--set={word} has no effect in {launcher}: {images}")


def _of_celeba(named: list[str]) -> bool:
    """Whether one of these flags names a folder of CelebA."""
    from mechdiff.data.celeba_folder import celeba_folder  # what it imports takes longer than all other flags

    return "celeba" in named or ("celeba" in FLAGS and celeba_folder(FLAGS.images) is not None)


def _name(module: ModuleType) -> str:
    return (module.__spec__.name if module.__spec__ else module.__name__).rpartition(".")[2]


def _renamed(word: str) -> str:
    """A word of the command line; the name of a flag of version 0.1 is replaced by today's."""
    name, equals, value = word.removeprefix("--").partition("=")
    today = old_names.FLAG_NAMES.get(name, name)
    if not word.startswith("--") or name in FLAGS or today not in FLAGS:
        return word
    return f"--{today}{equals}{value}"


def _check_images(images: str | int | None) -> None:
    """Checks that `--images` is a folder or file, in launchers that examine images."""
    if isinstance(images, str) and images.isdecimal() and not Path(images).exists():
        raise flags.Error(
            f"--images={images} is not a folder or file; did you mean --set=sweep.images={images}"
        )
    for name in ("classes", "conditions"):
        if FLAGS[name].value and not (images and isinstance(images, str)):
            raise flags.Error(f"--{name} says what the images of --images=FOLDER are; give that too")


def help_of(module: ModuleType, script: str) -> str:
    """The launcher's docstring, its own flags and the common ones."""
    shown = script if module.__name__ == "__main__" else module.__name__
    return "\n\n".join([module.__doc__ or "", FLAGS.module_help(shown), FLAGS.module_help(__name__)]).strip()
