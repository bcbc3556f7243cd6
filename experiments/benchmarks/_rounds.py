"""What the speed benchmarks share: arms in separate processes that take turns, and the table of ratios.

JAX and PyTorch disturb each other's thread pools in one process, and a machine drifts by tens of per
cent in minutes; so every arm is a process of its own, the arms alternate, and only ratios of medians
over the rounds of one run are shown, beside the speed of a plain matrix product in the same run.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from mechdiff.config import ExperimentConfig, to_dict
from mechdiff.errors import MechdiffError

OURS = "mechdiff"
ARMS = {  # name in the table -> module, variant
    OURS: ("experiments.benchmarks.ours", "float32"),
    "PyTorch": ("experiments.benchmarks.rival", "eager"),
    "PyTorch, channels last": ("experiments.benchmarks.rival", "channels_last"),
}
BATCHED = {  # of a sweep only: many ablations in a batch, by masks with one entry a row
    "PyTorch, batched": ("experiments.benchmarks.rival", "batched_eager"),
    "PyTorch, batched, ch. last": ("experiments.benchmarks.rival", "batched_channels_last"),
}
PRODUCT = 2048  # side of the square matrices whose product is the ceiling
LEVELS = 2  # timesteps of a sweep
MIN_SECONDS, MIN_REPEATS = 2.0, 2


def seconds(step: Callable[[], object]) -> float:
    """Median time of `step`, which must wait for its result; one call to warm up comes first."""
    step()
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(task: str, config: ExperimentConfig, images: int, rounds: int) -> dict[str, list[dict]]:
    """Arm -> what it measured in each round.

    Raises:
      MechdiffError: PyTorch or diffusers are not installed, or an arm failed.
    """
    for package in ("torch", "diffusers"):
        if importlib.util.find_spec(package) is None:
            raise MechdiffError(f"{package} is not installed; pip install 'mechdiff[torch]' gives the rival")
    arms = ARMS | (BATCHED if task == "forward_sweep" else {})
    found: dict[str, list[dict]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
            found[name].append(_run(*arms[name], task, config, images))
    for fact in ("parameters", "items"):
        values = {name: results[0][fact] for name, results in found.items()}
        if len(set(values.values())) > 1:
            raise MechdiffError(f"the arms differ in {fact}: {values}; they would not do the same work")
    return found


def _run(module: str, variant: str, task: str, config: ExperimentConfig, images: int) -> dict:
    command = [sys.executable, "-m", module, task, variant, str(images), json.dumps(to_dict(config))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MechdiffError(f"{module} ended with code {done.returncode}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, list[dict]], unit: str, work: float) -> str:
    """The comparison as text.

    Args:
      found: of `compare`.
      unit: what an item is.
      work: forward passes' worth of arithmetic in one item.
    """
    middle = lambda name, fact: statistics.median(r[fact] for r in found[name])  # noqa: E731
    rates = {name: sorted(r["items"] / r["seconds"] for r in results) for name, results in found.items()}
    flops = work * found[OURS][0]["flops"]
    ceiling = max(middle(name, "product") for name in found)
    heads = f"{'lowest':>10}{'highest':>10}{'ours is':>10}{'GF/s':>8}{'of ceiling':>12}"
    lines = [f"{'':28}{unit + '/s':>22}{heads}"]
    for name, rate in rates.items():
        speed = statistics.median(rate)
        ratio = statistics.median(rates[OURS]) / speed
        numbers = f"{speed:22.1f}{rate[0]:10.1f}{rate[-1]:10.1f}{ratio:9.2f}x"
        lines.append(f"{name:28}{numbers}{speed * flops / 1e9:8.1f}{speed * flops / 1e9 / ceiling:12.0%}")
    products = ", ".join(f"{name} {middle(name, 'product'):.0f}" for name in list(found)[:2])
    lines.append(f"ceiling: product of {PRODUCT} x {PRODUCT} float32 matrices, GF/s: {products}")
    first = found[OURS][0]
    lines.append(
        f"{first['parameters']:,} parameters, {first['flops'] / 1e9:.3f} GF per image and forward pass; "
        f"medians over {len(found[OURS])} alternated rounds"
    )
    return "\n".join(lines)
