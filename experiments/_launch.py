"""The common part of launchers: flags, the config that they make, handling of errors and interruptions.

Exit codes: 0 done, 2 an error of input or of the disk (one line on stderr), 128 + n stopped by signal n.
The command `mechdiff` runs the same launchers through `launch`, with options made of `flags_of` and
`common_flags`.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own notes; read when jax is imported

import jax
import xarray as xr
from absl import flags, logging

from mechdiff.cli import hints, output
from mechdiff.core import devices, keys, old_names, presets, processes
from mechdiff.core.config import DRAWN, ExperimentConfig, override, to_dict
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import load
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import bucket, exchange, files, labelled
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import choosing, inputs, load_check
from mechdiff.study.condition_sources import ConditionSources

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
LESS_MEMORY = (
    "lower sweep.image_block or sweep.chunk, let no other process use the card, or take a larger one"
)
BY_ZERO = "it replaces by zero"  # for `idle`
OF_NETWORKS = ("unet", "train", "diffusion")  # sections of settings that training alone reads
LONGEST = 1500  # characters of an error's line
HUGE_PAGES = "glibc.malloc.hugetlb=1"


class Opened(NamedTuple):
    """A trained model, how it was trained, its images, and those of them that it is examined on."""

    denoiser: Examinable
    trained: ExperimentConfig
    images: inputs.EvalImages
    eval_set: EvalSet


Main = Callable[[ExperimentConfig, Path], object]


def run(main: Main, argv: list[str] | None = None) -> None:
    """Parses the flags, calls `main(config, workdir)` and ends the process with its exit code."""
    sys.exit(end(launch(main, sys.argv if argv is None else argv)))


def end(code: int) -> int:
    """The exit code, once stdout is flushed (see `output.end`). One of several processes ends here, if it
    failed: the others are not waited for."""
    code = output.end(code)
    if code:
        processes.abandon(code)
    return code


def launch(main: Main, argv: list[str]) -> int:
    """As `run`, but returns the exit code. With --debug errors are raised as they are."""
    output.begin()
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGTERM, _interrupt)
    logging.set_verbosity(logging.WARNING)
    try:
        if {"-h", "--help"} & set(argv):
            print(_help(sys.modules[main.__module__], argv[0]))
            return 0
        _parse(argv)
        _check_settings(sys.modules[main.__module__], argv[0])
        config = override(presets.preset(FLAGS.preset), FLAGS.set)
        _join(getattr(sys.modules[main.__module__], "joins", False))
        with devices.enough_memory(LESS_MEMORY):
            _work(main, config, argv)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        _last_line(f"interrupted; the same command goes on: {shlex.join(sys.orig_argv)}")
        return 128 + number
    except BrokenPipeError:
        return output.CLOSED_PIPE
    except (MechdiffError, flags.Error, OSError) as error:
        line = files.explain(error) if isinstance(error, OSError) else " ".join(str(error).split())
        if line is None or (FLAGS.is_parsed() and FLAGS.debug):
            raise
        _last_line(f"error: {line if len(line) <= LONGEST else line[:LONGEST] + '...'}")
        return 2
    return 0


def _work(main: Main, config: ExperimentConfig, argv: list[str]) -> None:
    """Calls `main` with its lines sent where the flags want them; with --json, what it returns and the
    results that it wrote are printed. A bucket is called by its address, also in errors: the local copy is
    gone when they are read."""
    with bucket.local_copy(FLAGS.workdir or f"runs/{config.name}") as workdir:
        shown = exchange.address_of(workdir)
        try:
            _work_in(workdir, shown, main, config, argv)
        except MechdiffError as error:
            error.args = tuple(str(part).replace(str(workdir), shown) for part in error.args)
            raise


def _work_in(workdir: Path, shown: str, main: Main, config: ExperimentConfig, argv: list[str]) -> None:
    start, began = time.monotonic(), time.time()
    command = f"{Path(argv[0]).name} {shlex.join(argv[1:])}"
    settings = {"as_json": FLAGS.json, "quiet": FLAGS.quiet, "log_file": FLAGS.log_file}
    with output.redirected(**settings, command=command), output.renaming(str(workdir), shown):
        result = main(config, workdir)
    if FLAGS.json:
        facts = {"seconds": round(time.monotonic() - start, 3), "result": result}
        facts |= {"written": output.written_since(began, workdir)}
        with output.renaming(str(workdir), shown):
            output.print_json(command=command, workdir=workdir, **facts)


def _last_line(line: str) -> None:
    print(line, file=sys.stderr)
    if FLAGS.is_parsed():
        output.log_line(FLAGS.log_file, line)


def flags_of(module: ModuleType, script: str = "") -> list[flags.Flag]:
    """A launcher's own flags, by name.

    Args:
      script: its path, where it was started as a script.
    """
    by_module: dict[str, list[flags.Flag]] = FLAGS.flags_by_module_dict()
    return by_module.get(script if module.__name__ == "__main__" else module.__name__, [])


def common_flags() -> list[flags.Flag]:
    """The flags that all launchers take."""
    return FLAGS.flags_by_module_dict()[__name__]


def _parse(argv: list[str]) -> None:
    try:
        extra = FLAGS([_renamed(word) for word in argv])[1:]
    except flags.UnrecognizedFlagError as error:
        value = error.flagvalue.partition("=")[2]  # absl gives the whole word here
        meant = hints.meant(error.flagname, value or None, FLAGS)
        if meant is None:
            raise
        raise flags.Error(f"unknown flag --{error.flagname}; did you mean {meant}") from None
    for name in FLAGS:
        if FLAGS[name].present and FLAGS[name].value == "":  # of a shell's variable that is not set, say
            raise flags.Error(f"--{name}= is empty; give a value, or leave it out")
    if extra:
        raise flags.Error(f"unexpected argument {extra[0]!r}; write --flag=value (see --help)")
    _check_images(FLAGS["images"].value if "images" in FLAGS else None)
    if FLAGS.compilation_cache:
        folder = Path(FLAGS.compilation_cache).absolute()
        with files.plain_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # compiled programs are code: private
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _check_settings(module: ModuleType, script: str) -> None:
    """Refuses --set of what has no effect in a launcher: of what a trained network brings with it, where one
    is examined, and of the settings or sections that it calls `idle` (name -> what to do instead)."""
    own = {flag.name for flag in flags_of(module, script)}
    examines = bool({"model", "before"} & own)
    instead = getattr(module, "idle", {})
    for word in FLAGS.set or ():
        name = word.partition("=")[0]
        if examines and name.partition(".")[0] in OF_NETWORKS:
            raise flags.Error(
                f"--set={word} has no effect on a network that is trained already; leave it out"
            )
        idle = next((known for known in instead if name == known or name.startswith(f"{known}.")), None)
        if idle and word != "sweep.ablations=zero":
            raise flags.Error(f"--set={word} has no effect in {_name(module)}: {instead[idle]}")


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


def _join(joins: bool) -> None:
    """Makes this process one of several (`jax.distributed`); must come before any device is used.

    Args:
      joins: whether the launcher shares its work between them: it has `joins = True`. Others would do all
        of it in each, and write the same files.
    """
    if not (FLAGS.distributed or FLAGS.coordinator):
        return
    if not joins:
        flag = "--coordinator" if FLAGS.coordinator else "--distributed"
        raise flags.Error(f"{flag} is for train and sweep, which share work out; start this without it")
    if FLAGS.coordinator and None in (FLAGS.processes, FLAGS.process_id):
        raise flags.Error(f"--coordinator={FLAGS.coordinator} needs --processes=N and --process_id=I")
    if FLAGS.coordinator and FLAGS.process_id >= FLAGS.processes:
        raise flags.Error(f"--process_id={FLAGS.process_id} is not below --processes={FLAGS.processes}")
    output.keep_stdout()
    member = None
    if FLAGS.coordinator:
        member = processes.Membership(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
    processes.join(member, FLAGS.join_timeout)


def opened(
    config: ExperimentConfig,
    workdir: Path,
    model: str | Path,
    celeba: str | None,
    images: str | None = None,
    name: str = "",
) -> Opened:
    """A trained model and what it is examined on, by the settings `sweeps` and `seed`.

    Args:
      model: see `load.load_denoiser`.
      celeba, images: where images lie; see `choosing.chooser`.
      name: shown in results; the folder's if empty.
    """
    if config.sweep.precision != "float32":
        words = "acts in sweeps, screens and samples; all else is in float32"
        print(f"sweep.precision={config.sweep.precision} {words}", file=sys.stderr, flush=True)
    choose = chooser(config, workdir, celeba, images)
    denoiser, trained, record = load.load_denoiser(model, name)
    load.check_known(record, denoiser.name)
    images_of = choose(denoiser, trained, record)
    checked = load_check.check(denoiser, images_of, record, config.seed)
    print(f"{denoiser.name}: {images_of.label}; {checked.words}", file=sys.stderr, flush=True)
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.sweep.timesteps)
    key = keys.stream(jax.random.key(config.seed), "scored noise")
    return Opened(denoiser, trained, images_of, images_of.scored_set(timesteps, key))


def check_names(names: Sequence[str]) -> None:
    """Refuses models of one name in results, where the later would take the place of the earlier.

    Args:
      names: of all models, as the launcher calls their results.

    Raises:
      flags.Error: two are alike.
    """
    alike = [name for place, name in enumerate(names) if name in names[:place]]
    if alike:
        raise flags.Error(
            f"two models are called alike, {alike[0]}, and so would be their results; rename one run's folder"
        )


def without_references(config: ExperimentConfig) -> ExperimentConfig:
    """The config of a launcher that takes no reference images, as zero ablation takes none."""
    return replace(config, sweep=replace(config.sweep, ablations=("zero",)))


def chooser(
    config: ExperimentConfig, workdir: Path, celeba: str | None, images: str | None, mixed: bool = False
) -> Callable:
    """`choosing.chooser`, with the statements of --classes and --conditions on the images.

    Args:
      mixed: models of several data sets are examined by one command, and --celeba is for those that it fits;
        else a line on stderr says where it has no effect.
    """
    classes, conditions = (FLAGS[name].value for name in ("classes", "conditions"))  # unparsed in tests
    sources = ConditionSources(classes=classes, conditions=conditions)
    choose = choosing.chooser(config, celeba, workdir / "cache", images, sources)

    def said(
        denoiser: Examinable, trained: ExperimentConfig, record: dict | None = None
    ) -> inputs.EvalImages:
        if celeba and trained.data.name in DRAWN:
            words = f"{denoiser.name}: it is examined on {trained.data.name} images, which are drawn"
            print(f"warning: --celeba={celeba} has no effect on {words}", file=sys.stderr, flush=True)
        return choose(denoiser, trained, record)

    return choose if mixed else said


def save(workdir: Path, name: str, result: xr.Dataset, config: ExperimentConfig, **facts: object) -> None:
    """Writes WORKDIR/NAME.zarr, and its manifest as NAME.json."""
    labelled.replace(workdir / f"{name}.zarr", result)
    files.write_json(workdir / f"{name}.json", {"manifest": run_manifest(to_dict(config), **facts)})


def use_huge_pages() -> None:
    """Starts this process again with memory in huge pages where the C library is glibc, for launchers that
    run long: buffers of a training step and of a pass are new each time. On two cores a step then took 0.85
    of the time; on one core a sweep of a tiny network 0.86, of one of 4.4 million parameters 0.95."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, HUGE_PAGES]))
        os.execv(sys.executable, sys.orig_argv)


def _help(module: ModuleType, script: str) -> str:
    """The launcher's docstring, its own flags and the common ones."""
    shown = script if module.__name__ == "__main__" else module.__name__
    return "\n\n".join([module.__doc__ or "", FLAGS.module_help(shown), FLAGS.module_help(__name__)]).strip()


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _unraisable(lost) -> None:
    """Sends an interruption again, a moment later, that came where errors can't be raised (such as in JAX's
    callback of the garbage collector) and would be lost. Says nothing of what Orbax's threads still report
    when saving has failed: dozens of stack traces, one for each array."""
    if isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == "Event loop is closed":
        return None
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        return sys.__unraisablehook__(lost)
    number = lost.exc_value.args[0] if lost.exc_value.args else signal.SIGINT
    signal.signal(signal.SIGALRM, lambda *_: _interrupt(number, None))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
