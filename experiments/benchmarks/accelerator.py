"""All that is to be measured on a lent card, in one command, arm by arm.

`python -m experiments.benchmarks.accelerator --workdir=runs/card` (on a CPU it runs in small, as a rehearsal)

Arms, each a process of its own, the most telling first (`_arms.TURNS`): correctness against a CPU's stored
answers, ceilings from products that fill the card, attention alone in its forms, sweeps of `paper` in every
precision and with rows that join late or at few stages, against PyTorch's batched masks and its hook loop,
training of `paper` against PyTorch, both started again with their programs compiled, sweeps of `cpu32`, a
profile. Sweeps tell the memory that was predicted beside that which the card counted.
Every arm's result is in WORKDIR/accelerator.json as soon as it is there: start it again and it goes on with
those that are missing. An arm that takes more than `--arm_seconds` is stopped, alone, and finds what it had
compiled the next time (WORKDIR/compiled; such a time of compiling is marked). After `--minutes` no arm is
begun, and the one that runs is stopped. At the end there is one table, also in WORKDIR/accelerator.txt: all
arms, then every sweep and training against the best PyTorch and against its ceiling. Rivals need the `torch`
extra; without it their lines say so.
"""

import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from experiments import _launch
from experiments.benchmarks import _harness
from experiments.benchmarks._arms import MECHDIFF, PYTORCH, Arm, arms
from mechdiff.core.errors import MechdiffError
from mechdiff.storage import files

MINUTES = flags.DEFINE_float("minutes", 8.0, "After so long no arm is begun.", lower_bound=0.1)
ARM_SECONDS = flags.DEFINE_float("arm_seconds", 150.0, "After so long an arm is stopped.", lower_bound=1)
SMALL = flags.DEFINE_boolean("small", None, "A rehearsal with tiny networks; default: on CPUs.")

NOTHING = 5.0  # seconds in which no arm can start
AS_EXACT = {"3xtf32": "float32"}  # the precision of PyTorch that a precision of ours stands in for
TRAINING_PASSES = 3  # forward passes' worth of arithmetic in a training step
NO_RIVALS = "not run: needs PyTorch and diffusers; pip install 'mechdiff[torch]'"


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
