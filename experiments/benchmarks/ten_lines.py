"""How long each of the ten lines of daily use takes, in a session with nothing compiled.

`python -m experiments.benchmarks.ten_lines --images=my_images/` runs them one after another on
`cpu32-celeba-seed0` in a process of its own, outside the checkout and with caches of their own. With
`--python=/path/to/python` another interpreter runs them, such as one where the wheel is installed. Prints
wall seconds of each line. Result: WORKDIR/ten_lines.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import _launch
from mechdiff.core.errors import MechdiffError
from mechdiff.storage import files

IMAGES = flags.DEFINE_string("images", None, "Folder of at least 32 images.", required=True)
PYTHON = flags.DEFINE_string("python", sys.executable, "Interpreter that runs the lines.")
LINES = (
    "import mechdiff as md",
    'model = md.load("cpu32-celeba-seed0")',
    'model.components(type="head")',
    'gone = model.ablate("up1.attn1.head3").during(0, 300)',
    "md.show(model.sample(8, seed=0), gone.sample(8, seed=0))._repr_png_()",
    "result = model.sweep(images, n=16)",
    "result.top(10)",
    'result.plot("up1.attn1.head3")._repr_png_(); result.plot()._repr_png_()',
    'model.activations(images, sites="mid.*", timesteps=[147, 500])',
    'md.compare("cpu32-synthetic-seed0", model, images).top(10)',
)
CHILD = """
import json, sys, time
lines, images = json.loads(sys.argv[1])
seconds, scope = [], {"images": images}
for line in lines:
    begun = time.monotonic()
    exec(line, scope)
    seconds.append(time.monotonic() - begun)
print(json.dumps({"seconds": seconds, "package": scope["md"].__file__}))
"""


def main(config, workdir):
    del config  # the face has defaults of its own
    with tempfile.TemporaryDirectory() as folder:
        taken = run_lines(Path(folder))
    files.write_json(files.ensure_writable(workdir) / "ten_lines.json", taken | {"lines": LINES})
    table = Table(box=None, header_style="bold")
    table.add_column("line")
    table.add_column("wall s", justify="right")
    for line, seconds in zip(LINES, taken["seconds"], strict=True):
        table.add_row(line, f"{seconds:.1f}")
    table.add_row("all", f"{sum(taken['seconds']):.1f}")
    Console(width=100, highlight=False, markup=False).print(table)
    return taken


def run_lines(folder: Path) -> dict:
    """Seconds of each line, and which package ran: that of the interpreter, unless it is this one."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    words = json.dumps([LINES, str(Path(IMAGES.value).resolve())])
    command = [PYTHON.value, "-c", CHILD, words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise MechdiffError(f"a line failed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _launch.run(main)
