"""Ablates each component during sampling, in windows of timesteps, and measures how far samples move.

`python -m experiments.sweep_sampling --model=checkpoints/cpu16-synthetic-seed0 --windows=4`
The changed and the clean sample share all noise. Start it again to go on; several may run at once. The
result, WORKDIR/trajectories/KEY.zarr, has the distance of every sample to its clean twin.
"""

import dataclasses

import jax
from absl import flags

from mechdiff import stats
from mechdiff.cli import tables
from mechdiff.core import keys
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.samplers import ddim_step, ddpm_step
from mechdiff.models import factories, load
from mechdiff.storage import files, manifest
from mechdiff.sweeps import precision, sampling
from mechdiff.sweeps.execution import drawing, forecast
from mechdiff.sweeps.execution.rollout import even_windows, network_calls

from . import _flags, _launch

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
WINDOWS = flags.DEFINE_integer("windows", 5, "Parts that the visited timesteps are cut into.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 16, "Samples under every intervention.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", None, "Timesteps visited; default: 50, at most all.", lower_bound=1)
SAMPLER = flags.DEFINE_enum("sampler", "ddim", ["ddim", "ddpm"], "How a step is made.")
idle = _flags.all_but("precision", "chunk") | {
    "sweep.images": "give --samples=N",
    "sweep.timesteps": "give --steps=N",
    "sweep.ablations": _flags.BY_ZERO,
}


def main(config, workdir):
    use_all_cores()
    denoiser, _, record = load.load_denoiser(MODEL.value)
    load.check_stated(record, denoiser.name)
    timesteps = drawing.sampled_timesteps(denoiser, STEPS.value)
    windows = even_windows(timesteps, WINDOWS.value)
    settings = dataclasses.replace(
        sampling.SETTINGS, chunk=config.sweep.chunk, precision=config.sweep.precision
    )
    forecast.print_memory_forecast(denoiser, settings, replacements=len(timesteps))
    files.ensure_writable(workdir)
    manifest.write(workdir, manifest.run_manifest(to_dict(config), models=[denoiser.name]))
    samples = sampling.SampleSet(
        timesteps,
        SAMPLES.value,
        keys.stream(jax.random.key(config.seed), "trajectories"),
        condition=condition_of(denoiser, record, SAMPLES.value),
        step_fn={"ddim": ddim_step, "ddpm": ddpm_step}[SAMPLER.value],
    )
    swept = sampling.sampling_sweep(denoiser, samples, windows, workdir / "trajectories", config=settings)
    shared, naive = network_calls(timesteps, windows, swept.sizes["component"])
    print(calls_in_words(shared, naive))
    if statement := precision.sampling_statement(swept):
        print(f"{statement}; –: not above it")
    distance = sampling.mean_distance(swept.isel(ablation=[0]), config.seed)
    largest_first = swept["distance"].isel(ablation=0).mean(("sample", "window")).argsort().values[::-1]
    rows = []
    for i in largest_first:
        row: dict = {"component": str(swept["component"].values[i])}
        for j, (low, high) in enumerate(windows):
            row |= tables.with_interval(f"t in [{low}, {high})", distance, (0, int(i), j))
        rows.append(row)
    what = "mean distance of samples to those without ablation, by window of timesteps"
    few = stats.few_images(SAMPLES.value)
    tables.print_records(f"{what}, with 95 % intervals over {SAMPLES.value} samples{few}", rows)
    return {"folder": workdir / "trajectories", "distances": rows}


def calls_in_words(shared: int, naive: int) -> str:
    """Network calls of every sample, and how many fewer they are where that is so: with one window nothing is
    shared, and clean samples are drawn besides.

    Args:
      shared, naive: of `rollout.network_calls`.
    """
    less = f" instead of {naive:,}: {naive / shared:.2f} x fewer" if shared < naive else ""
    return f"{shared:,} network calls per sample{less}"


def condition_of(denoiser, record, count):
    """The condition that a user's function returned with its images, else every class in turn; None where
    the network takes none."""
    _, condition = record.get(factories.WITH_IMAGES, (None, None))
    if condition is None:
        return drawing.sample_condition(denoiser, count)
    held = min((len(leaf) for leaf in jax.tree.leaves(condition)), default=count)
    if held < count:
        raise ConfigError(f"{denoiser.name} came with {held} conditions; --samples={count} needs as many")
    return jax.tree.map(lambda leaf: leaf[:count], condition)


if __name__ == "__main__":
    _launch.run(main)
