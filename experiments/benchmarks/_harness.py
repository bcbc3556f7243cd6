"""What the speed benchmarks share: arms in separate processes that take turns, and the table of ratios.

JAX and PyTorch disturb each other's thread pools in one process, and a machine drifts by tens of per
cent in minutes; so every arm is a process of its own, the arms alternate, and only ratios of medians
over the rounds of one run are shown, beside the speed of a plain matrix product in the same run.
"""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from experiments import _launch
from mechdiff.core.config import ExperimentConfig, UNetConfig, to_dict
from mechdiff.core.errors import MechdiffError
from mechdiff.core.text_table import text_table

MECHDIFF = "mechdiff"
ARMS = {  # name in the table -> module, variant
    MECHDIFF: ("experiments.benchmarks.mechdiff_arm", "float32"),
    "PyTorch": ("experiments.benchmarks.torch_baseline", "eager"),
    "PyTorch, channels last": ("experiments.benchmarks.torch_baseline", "channels_last"),
}
BATCHED = {  # of a sweep only: many ablations in a batch, by masks with one entry a row
    "PyTorch, batched": ("experiments.benchmarks.torch_baseline", "batched_eager"),
    "PyTorch, batched, ch. last": ("experiments.benchmarks.torch_baseline", "batched_channels_last"),
    "PyTorch, batched, compiled": ("experiments.benchmarks.torch_baseline", "batched_compiled"),
}
NETS = {  # networks of the table of targets that are no presets
    "c32": UNetConfig(  # 16 channels a head
        image_size=32,
        widths=(32, 64, 64, 128),
        blocks_per_level=2,
        down_attention=(False, True, True, False),
        up_attention=(False, True, True, False),
        heads=(2, 4, 4, 8),
    ),
    "tiny16": UNetConfig(image_size=16, widths=(16, 32, 32)),
}
PRODUCT = 2048  # side of the square matrices whose product is the ceiling
MIN_SECONDS = float(os.environ.get("MECHDIFF_BENCHMARK_SECONDS", 2))  # that a step is repeated for


def seconds(step: Callable[[], object], warm_up: Callable[[], object] | None = None) -> float:
    """Median time of `step`, which must wait for its result; `warm_up`, or one step, comes first."""
    (warm_up or step)()
    times: list[float] = []
    while sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_turns(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each arm of one process took in every round; they take turns at going first."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            arms[name]()
            times[name].append(time.perf_counter() - start)
    return times


def compare(
    task: str, config: ExperimentConfig, images: int, rounds: int, chosen: str = ".*"
) -> dict[str, list[dict]]:
    """Arm -> what it measured in each round.

    Args:
      chosen: regular expression that names of the baselines match in full.
    Raises:
      MechdiffError: PyTorch or diffusers are not installed, or an arm failed.
    """
    for package in ("torch", "diffusers"):
        if importlib.util.find_spec(package) is None:
            raise MechdiffError(
                f"{package} is not installed; pip install 'mechdiff[torch]' gives the baseline"
            )
    arms = ARMS | (BATCHED if task == "forward_sweep" else {})
    arms = {name: arm for name, arm in arms.items() if name == MECHDIFF or re.fullmatch(chosen, name)}
    measured: dict[str, list[dict]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as cache:  # torch.compile's, so that only its first round compiles
        for turn in range(rounds):
            for name in list(arms)[:: 1 if turn % 2 else -1]:
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                measured[name].append(_run(*arms[name], task, config, images, cache))
    for fact in ("parameters", "items"):
        values = {name: results[0][fact] for name, results in measured.items()}
        if len(set(values.values())) > 1:
            raise MechdiffError(f"the arms differ in {fact}: {values}; they would not do the same work")
    return measured


# `python -m MODULE ARGUMENTS` that ends with the process that holds the other end of its standard input.
WATCHED = """
import os, runpy, sys, threading
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def _run(
    module: str, variant: str, task: str, config: ExperimentConfig, images: int, cache: str,
    *, variables: dict[str, str] | None = None, limit: float | None = None,
) -> dict:  # fmt: skip
    """What one arm prints, in a process of its own.

    Args:
      variables: of its environment, besides this one's.
      limit: seconds until it is stopped.
    """
    arguments = [task, variant, str(images), json.dumps(to_dict(config))]
    command = [sys.executable, "-c", WATCHED, module, *arguments]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache} | (variables or {})
    environment["JAX_TRACEBACK_FILTERING"] = "off"  # or the last line of an error is a note on frames
    if task in ("training_step", "forward_sweep"):  # as long launchers do; PyTorch too may profit from it
        environment["GLIBC_TUNABLES"] = _launch.HUGE_PAGES
    read, write = os.pipe()  # closed with this process, however that ends
    try:
        with os.fdopen(read) as stdin, os.fdopen(write, "w"):
            done = subprocess.run(
                command, stdin=stdin, capture_output=True, text=True, env=environment, timeout=limit
            )
    except subprocess.TimeoutExpired:
        raise MechdiffError(f"{module} was stopped after {limit:.0f} s; give it more time") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MechdiffError(f"{module} ended with code {done.returncode}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def table(measured: dict[str, list[dict]], unit: str, work: float) -> str:
    """The comparison as text.

    The share of the ceiling counts `needed`, the least operations of the task, where an arm states
    it, and whole forward passes elsewhere.

    Args:
      measured: of `compare`.
      unit: what an item is.
      work: forward passes' worth of arithmetic in one item.
    """

    def middle(name: str, fact: str) -> float:
        return statistics.median(r[fact] for r in measured[name])

    rates = {name: sorted(r["items"] / r["seconds"] for r in results) for name, results in measured.items()}
    first = measured[MECHDIFF][0]
    ceiling = max(middle(name, "product") for name in measured)
    heads = ("", f"{unit}/s", "lowest", "highest", "speed-up", "GF/s", "of ceiling")
    rows = []
    for name, rate in rates.items():
        speed = statistics.median(rate)
        ratio = statistics.median(rates[MECHDIFF]) / speed
        per_item = measured[name][0].get("needed", work * first["flops"] * first["items"]) / first["items"]
        gigaflops = speed * per_item / 1e9
        rates_text = [f"{value:.1f}" for value in (speed, rate[0], rate[-1])]
        rows.append([name, *rates_text, f"{ratio:.2f}x", f"{gigaflops:.1f}", f"{gigaflops / ceiling:.0%}"])
    lines = text_table(heads, rows)
    products = ", ".join(f"{name} {middle(name, 'product'):.0f}" for name in list(measured)[:2])
    lines.append(f"ceiling: product of {PRODUCT} x {PRODUCT} float32 matrices, GF/s: {products}")
    lines += [
        f"{name}: {max(r['compiling'] for r in results):.0f} s to compile, not counted above"
        for name, results in measured.items()
        if "compiling" in results[0]
    ]
    lines.append(
        f"{first['parameters']:,} parameters, {first['flops'] / 1e9:.3f} GF per image and forward pass; "
        f"medians over {len(measured[MECHDIFF])} alternated rounds"
    )
    return "\n".join(lines)
