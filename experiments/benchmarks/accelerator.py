"""All that is to be measured on a lent card, in one command, arm by arm.

`python -m experiments.benchmarks.accelerator --workdir=runs/card` (on a CPU it runs in small, as a rehearsal)

Arms, each a process of its own, the most telling first (`TURNS`): correctness against a CPU's stored answers,
ceilings from products that fill the card, attention alone in its forms, sweeps of `paper` in every precision
and with rows that join late or at few stages, against PyTorch's batched masks and its hook loop, training of
`paper` against PyTorch, both started again with their programs compiled, sweeps of `cpu32`, a profile. Sweeps
tell the memory that was predicted beside that which the card counted.
Every arm's result is in WORKDIR/accelerator.json as soon as it is there: start it again and it goes on with
those that are missing. An arm that takes more than `--arm_seconds` is stopped, alone, and finds what it had
compiled the next time (WORKDIR/compiled; such a time of compiling is marked). After `--minutes` no arm is
begun, and the one that runs is stopped. At the end there is one table, also in WORKDIR/accelerator.txt: all
arms, then every sweep and training against the best PyTorch and against its ceiling. Rivals need the `torch`
extra; without it their lines say so.
"""

import dataclasses
import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments import _launch
from experiments.benchmarks import _harness
from mechdiff.core import presets
from mechdiff.core.config import ExperimentConfig, override
from mechdiff.core.errors import MechdiffError
from mechdiff.storage import files

MINUTES = flags.DEFINE_float("minutes", 8.0, "After so long no arm is begun.", lower_bound=0.1)
ARM_SECONDS = flags.DEFINE_float("arm_seconds", 150.0, "After so long an arm is stopped.", lower_bound=1)
SMALL = flags.DEFINE_boolean("small", None, "A rehearsal with tiny networks; default: on CPUs.")

# Modules that an arm's process runs.
MECHDIFF, PYTORCH = "experiments.benchmarks.mechdiff_arm", "experiments.benchmarks.torch_baseline"
DEVICE = "experiments.benchmarks._device"
PRODUCTS = ("float32", "tf32", "bfloat16")
SETTINGS = ("float32", "3xtf32", "tf32", "bfloat16")
ATTENTION = {"mechdiff": ("float32", "bfloat16"), "jax": ("float32", "bfloat16"), "cudnn": ("bfloat16",)}
ROW_COUNTS = "MECHDIFF_BENCHMARK_ROW_COUNTS"  # read by `mechdiff_arm`
NOTHING = 5.0  # seconds in which no arm can start
# Names of the arms that are run first, and of those that come second; the others come third. How long each
# takes on a card is not known, so that what is worth most comes first.
TURNS = (
    (
        r"answers, (float32|3xtf32)",
        r"product, .*",
        r"sweep of .*, tf32",
        r"sweep of .*, tf32, PyTorch batched_channels_last",
        r"sweep of paper.*, 3xtf32",
        r"training of [^,]*, [^,]*, [^,]*",
        r"training of .*, PyTorch channels_last_compiled",
    ),
    (
        r"answers, .*",
        r".*, started again",
        r"sweep of .*, (float32|3xtf32)",
        r"sweep of .*, float32, PyTorch batched_.*",
        r"sweep of paper.*, tf32, .*",
        r"attention, .*",
    ),
)
AS_EXACT = {"3xtf32": "float32"}  # the precision of PyTorch that a precision of ours stands in for
TRAINING_PASSES = 3  # forward passes' worth of arithmetic in a training step
NO_RIVALS = "not run: needs PyTorch and diffusers; pip install 'mechdiff[torch]'"


class Arm(NamedTuple):
    """One process: `module task variant`, of how many images (or a matrix of which side).

    Attributes:
      variables: of its environment.
      programs_of: the arm that has compiled the same programs, if any.
    """

    name: str
    module: str
    task: str
    variant: str
    images: int
    config: ExperimentConfig
    variables: dict[str, str] = {}  # noqa: RUF012 (never changed)
    programs_of: str = ""


def arms(small: bool, folder: str) -> list[Arm]:
    """In the order in which they are run: what is done when time is out is worth the most."""
    quick = {"MECHDIFF_BENCHMARK_SECONDS": "0.1"} if small else {}  # a rehearsal shows no speed
    planned = [arm._replace(variables=arm.variables | quick) for arm in _by_subject(small, folder)]
    return sorted(planned, key=lambda arm: turn(arm.name))


def turn(name: str) -> int:
    """When an arm is run: 0, 1 or 2."""
    for place, patterns in enumerate(TURNS):
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            return place
    return len(TURNS)


def _by_subject(small: bool, folder: str) -> list[Arm]:
    tiny = presets.preset("tiny")
    paper, cpu32 = (tiny, tiny) if small else (presets.preset("paper"), presets.preset("cpu32"))
    side = 256 if small else 8192
    profiled, images = dataclasses.replace(_at(paper, 1, "float32"), name=folder), 4 if small else 16
    sweeps = _sweeps("paper", paper, images, 1)
    in_float32 = next(arm.name for arm in sweeps if arm.variant == "float32")
    return [
        *(Arm(f"answers, {setting}", DEVICE, "answers", setting, 0, tiny) for setting in SETTINGS),
        *(Arm(f"product, {setting}", DEVICE, "product", setting, side, tiny) for setting in PRODUCTS),
        *_attention(paper, 2 if small else 64),
        *sweeps,
        *_training(paper, 8 if small else 128),
        *_sweeps("cpu32", cpu32, 4 if small else 64, 1 if small else 4),
        Arm(
            "profile, sweep of paper", DEVICE, "profile", "float32", images, profiled, programs_of=in_float32
        ),
    ]


def _attention(config: ExperimentConfig, images: int) -> list[Arm]:
    return [
        Arm(f"attention, {form}, {dtype}", DEVICE, "attention", f"{form} {dtype}", images, config)
        for form, dtypes in ATTENTION.items()
        for dtype in dtypes
    ]


def _at(config: ExperimentConfig, timesteps: int, setting: str) -> ExperimentConfig:
    return override(config, [f"sweep.timesteps={timesteps}", f"sweep.precision={setting}"])


def _sweeps(name: str, config: ExperimentConfig, images: int, timesteps: int) -> list[Arm]:
    """mechdiff in every precision; PyTorch's best forms in float32 and TF32."""
    title = f"sweep of {name}, {images} images, {timesteps} timesteps"
    shared_prefix = [
        Arm(
            f"{title}, {setting}", MECHDIFF, "forward_sweep", setting, images, _at(config, timesteps, setting)
        )
        for setting in SETTINGS
    ]
    # In how many sizes rows join: any, and fewer than `engine.ROW_COUNTS`, a guess that the others rest on.
    late, fewer = (
        Arm(
            f"{title}, tf32, {words}", MECHDIFF, "forward_sweep", "tf32", images,
            _at(config, timesteps, "tf32"), {ROW_COUNTS: count},
        )
        for words, count in (("rows join late", "0"), ("rows join at three stages", "3"))
    )  # fmt: skip
    # The most telling first; one hook at a time, as most would write it, takes the longest.
    forms = ("batched_channels_last", "batched_compiled", "batched_eager", "channels_last")
    baselines = [
        Arm(
            f"{title}, {setting}, PyTorch {form}", PYTORCH, "forward_sweep", form, images,
            _at(config, timesteps, "float32"),
            {"JAX_DEFAULT_MATMUL_PRECISION": "float32" if setting == "float32" else "tensorfloat32"},
        )
        for form in forms
        for setting in ("tf32", "float32")
    ]  # fmt: skip
    tf32 = next(arm for arm in shared_prefix if arm.variant == "tf32")
    return [*shared_prefix, late, *baselines, fewer, _again(tf32)]


def _again(arm: Arm) -> Arm:
    """The same arm once more, whose programs are compiled already: what a second session waits for."""
    return arm._replace(name=f"{arm.name}, started again", programs_of=arm.name)


def _training(config: ExperimentConfig, batch: int) -> list[Arm]:
    title = f"training of paper, {config.train.dtype}, batch {batch}"
    mechdiff = Arm(title, MECHDIFF, "training_step", config.train.dtype, batch, config)
    forms = ("channels_last_compiled", "channels_last", "eager")
    baselines = [
        Arm(f"{title}, PyTorch {form}", PYTORCH, "training_step", form, batch, config) for form in forms
    ]
    return [mechdiff, *baselines, _again(mechdiff)]


def run(
    planned: list[Arm],
    done: dict[str, dict],
    deadline: float,
    save: Callable[[dict], None],
    longest: float = float("inf"),
    compiled: Path | None = None,
) -> dict[str, dict]:
    """Results by arm; those that failed say why and are tried again the next time.

    Args:
      deadline: of `time.monotonic`, for all.
      save: called with all results after each arm.
      longest: seconds that one arm may take.
      compiled: where JAX keeps the programs of every arm, apart from those of others.
    """
    results = {name: result for name, result in done.items() if "failed" not in result}
    with tempfile.TemporaryDirectory() as cache:
        for number, arm in enumerate(planned, 1):
            left = deadline - time.monotonic()
            if arm.name in results or left < NOTHING:
                continue
            print(f"{number} of {len(planned)}: {arm.name}", file=sys.stderr, flush=True)
            try:
                results[arm.name] = _harness._run(
                    arm.module, arm.variant, arm.task, arm.config, arm.images, cache,
                    variables=arm.variables | _programs(arm, compiled), limit=min(left, longest),
                )  # fmt: skip
            except MechdiffError as error:
                results[arm.name] = {"failed": str(error)}
            save(results)
    return results


def _programs(arm: Arm, compiled: Path | None) -> dict[str, str]:
    """The variable that tells an arm where programs are kept."""
    if compiled is None:
        return {}
    name = re.sub(r"\W+", "-", arm.programs_of or arm.name)
    return {"JAX_COMPILATION_CACHE_DIR": str(files.ensure_writable(compiled / name))}


def table(planned: list[Arm], results: dict[str, dict], rivals: bool = True) -> str:
    """All arms, a line each: speed, time of compiling, memory, or why there is nothing; then ratios.

    Args:
      rivals: whether PyTorch is there to run.
    """
    facts = next((result for result in results.values() if "device" in result), {})
    about = f"{facts.get('devices', '?')} x {facts.get('device', '?')}, jax {facts.get('jax', '?')}"
    cells = [
        NO_RIVALS if arm.module == PYTORCH and not rivals else _cells(results.get(arm.name))
        for arm in planned
    ]
    lines = [f"{arm.name:80} {text}" for arm, text in zip(planned, cells, strict=True)]
    return "\n".join([about, *lines, *ratios(planned, results)])


def ratios(planned: list[Arm], results: dict[str, dict]) -> Iterator[str]:
    """Every sweep and training of mechdiff that ran: its speed over that of the best PyTorch of the same
    precision, and the share of the ceiling that its needed operations take."""
    for arm in planned:
        if arm.module == MECHDIFF and "items" in results.get(arm.name, {}):
            facts = [*_over_rivals(arm, results), *_of_ceiling(arm, results)]
            if facts:
                yield f"{arm.name}: {', '.join(facts)}"


def _over_rivals(arm: Arm, results: dict[str, dict]) -> Iterator[str]:
    precision = AS_EXACT.get(arm.variant, arm.variant)
    title = re.sub(f", {arm.variant}$", f", {precision}", arm.name)
    rates = {
        name: _rate(result)
        for name, result in results.items()
        if name.startswith(f"{title}, PyTorch ") and "items" in result
    }
    if rates:
        best = max(rates, key=rates.__getitem__)
        ratio, form = _rate(results[arm.name]) / rates[best], best.rpartition("PyTorch ")[2]
        yield f"{ratio:.2f} x the best PyTorch ({form}, {precision})"


def _of_ceiling(arm: Arm, results: dict[str, dict]) -> Iterator[str]:
    parts = 3 if arm.variant == "3xtf32" else 1  # products that each of its own is made of
    ceiling = results.get(f"product, {'tf32' if parts == 3 else arm.variant}", {})
    if "gflops" in ceiling:
        result = results[arm.name]
        speed = parts * _operations(result) / result["seconds"] / 1e9
        yield f"{speed / ceiling['gflops']:.0%} of the product's speed"


def _rate(result: dict) -> float:
    return result["items"] / result["seconds"]


def _operations(result: dict) -> float:
    """The least that a task needs, where an arm states it; of a training step three forward passes."""
    return result.get("needed", TRAINING_PASSES * result.get("flops", 0) * result["items"])


def _cells(result: dict | None) -> str:
    if result is None:
        return "not run: no time left"
    if "failed" in result:
        return f"failed: {result['failed']}"
    if "points" in result:
        acts = "" if result["acts"] else " (this precision changes nothing here)"
        own = f", by its own count {result['own_error']:.2g}"
        return f"{result['points']:.2g} of {result['of']:.0f} points from a CPU{own}{acts}"
    if "gflops" in result:
        return f"{result['gflops'] / 1e3:.3g} TFLOP/s, side {result['side']}"
    if "milliseconds" in result:
        off = f", {result['difference']:.1e} from patterns in float64"
        return f"{result['milliseconds']:.2f} ms, gradient {result['gradient_milliseconds']:.2f} ms{off}"
    if "folder" in result:
        return f"{result['bytes'] / 2**20:.1f} MiB in {result['folder']}"
    peak = f", {result['peak_bytes'] / 2**30:.2f} GiB at most" if "peak_bytes" in result else ""
    if "predicted_bytes" in result:
        peak = f", {result['predicted_bytes'] / 2**30:.2f} GiB predicted{peak}"
    before = " (compiled before)" if result.get("loaded") else ""
    compiling = f", {result['compiling']:.0f} s to compile{before}" if "compiling" in result else ""
    return f"{_rate(result):.1f} items/s{compiling}{peak}"


def _on_cpu() -> bool:
    """Asked in a process of its own: this one must leave the card's memory to the arms."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise MechdiffError(f"JAX finds no device: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split()[-1] == "cpu"


def main(config, workdir):
    small = _on_cpu() if SMALL.value is None else SMALL.value
    rivals = all(importlib.util.find_spec(package) for package in ("torch", "diffusers"))
    path = files.ensure_writable(workdir) / "accelerator.json"
    done = files.read_json(path) if path.exists() else {}
    planned = arms(small, str(workdir / "profile"))
    possible = [arm for arm in planned if rivals or arm.module != PYTORCH]
    deadline = time.monotonic() + 60 * MINUTES.value
    save = functools.partial(files.write_json, path)
    results = run(possible, done, deadline, save, ARM_SECONDS.value, (workdir / "compiled").absolute())
    text = table(planned, results, rivals)
    files.write_atomic(workdir / "accelerator.txt", text + "\n")
    print(text)


if __name__ == "__main__":
    _launch.run(main)
