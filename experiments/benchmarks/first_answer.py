"""How long a user waits for the first answers: loading, a screen, samples, a sweep, from a fresh process.

`python -m experiments.benchmarks.first_answer --model=cpu32-synthetic-seed0 --n=16` times, one after another
in one process: importing; loading; a screen of all components (the first answer); 8 samples; a sweep of n
images at 4 timesteps. Two sessions follow each other: the first with nothing compiled, the second with the
programs that the first one kept, as a user has them the next day. Prints for each step wall seconds,
processor seconds (of all cores), and how many programs were compiled, or read where they are kept, in how
many seconds. Result: WORKDIR/first_answer.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import _flags, _launch
from mechdiff.core.errors import MechdiffError
from mechdiff.storage import files

MODEL = flags.DEFINE_string("model", "cpu32-synthetic-seed0", _flags.MODEL_HELP)
IMAGES = flags.DEFINE_integer("n", 16, "Images of the sweep.", lower_bound=2)
STEPS = {  # name -> what a user types; `md`, `model` and `n` are there
    "import": "import jax; import mechdiff as md",
    "load": "model = md.load(name)",
    "screen": "first = model.screen().top(1).component[0]",
    "samples": "model.sample(8, seed=0)",
    "sweep": "model.sweep(n=n, timesteps=4, folder=folder)",
}
COMPILING = "/jax/core/compile/backend_compile_duration"


def main(config, workdir):
    del config  # the face has defaults of its own
    with tempfile.TemporaryDirectory() as folder:
        sessions = {session: run_session(folder, session) for session in ("first", "second")}
    files.write_json(files.ensure_writable(workdir) / "first_answer.json", sessions)
    print_table(sessions)
    return sessions


def run_session(folder: str, session: str) -> dict:
    """All steps in a process of its own; sessions of one folder share compiled programs, not sweeps."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
        "XDG_CACHE_HOME": f"{folder}/cache",
    }
    words = [MODEL.value, str(IMAGES.value), f"{folder}/{session}"]
    command = [sys.executable, "-m", "experiments.benchmarks.first_answer", "--session", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise MechdiffError(f"a session failed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, n: int, folder: str) -> dict:
    """Runs the steps in this process: step -> seconds, processor seconds, programs, seconds of compiling."""
    compiled: list[float] = []  # seconds of each program
    scope = {"name": name, "n": n, "folder": folder}
    taken = {}
    for step, code in STEPS.items():
        before, wall, processor = len(compiled), time.monotonic(), time.process_time()
        exec(code, scope)  # the very lines that a user types
        if step == "import":
            _listen(compiled)
        inside = compiled[before:]
        taken[step] = {
            "seconds": time.monotonic() - wall,
            "processor_seconds": time.process_time() - processor,
            "programs": len(inside),
            "compiling_seconds": sum(inside),
        }
    return {"steps": taken, "first": scope["first"]}


def _listen(compiled: list[float]) -> None:
    """From now on what JAX compiles is noted; it can't be asked before it is imported."""
    import jax

    def note(event: str, duration: float, **_: object) -> None:
        if event == COMPILING:
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)


def print_table(sessions: dict) -> None:
    """Both sessions, step by step, to stdout."""
    table = Table(box=None, header_style="bold")
    for head in ("session", "step"):
        table.add_column(head)
    for head in ("wall s", "processor s", "programs", "compiling s"):
        table.add_column(head, justify="right")
    for session, measured in sessions.items():
        for step, taken in measured["steps"].items():
            numbers = (f"{taken['seconds']:.1f}", f"{taken['processor_seconds']:.1f}")
            compiling = (str(taken["programs"]), f"{taken['compiling_seconds']:.1f}")
            table.add_row(session, step, *numbers, *compiling)
    Console(width=100, highlight=False, markup=False).print(table)
    print("the screen's first: " + ", ".join(measured["first"] for measured in sessions.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--session"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        _launch.run(main)
