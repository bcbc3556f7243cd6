"""The memory that a sweep will take, printed before it begins."""

from mechdiff.core.config import SweepConfig
from mechdiff.interventions import build
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import footprint
from mechdiff.sweeps.execution.engine import Engine

MOMENTS = 8  # size of four sums in float64, in units of one replacement in float32


def print_memory_forecast(
    denoiser: Examinable, config: SweepConfig, ablations: tuple[str, ...] | None = None, replacements: int = 0
) -> None:
    """Prints the memory that a sweep will take, before it begins.

    Args:
      ablations: those of the config if None.
      replacements: number of replacements for every site that are held in memory besides the sweep's own.
    Raises:
      ConfigError: the sweep can't fit.
    """
    ablations = config.ablations if ablations is None else ablations
    runner = Engine(denoiser, config.chunk)
    replacements += config.timesteps * sum(
        {"mean": 1, "noise": 2, "optimal": 1}.get(ablation, 0) for ablation in ablations
    )
    if "resample" in ablations:
        replacements += config.image_block
    if replacements:
        replacements += len(runner.devices) + MOMENTS  # at one timestep: on the devices, and being averaged
    stacked = build.leave_one_out(denoiser.identity, denoiser.components())[1]
    block = min(config.images, config.image_block)
    of_one = (
        footprint.replacement_bytes(denoiser.network) if replacements else 0
    )  # tracing the network takes time
    forecast = runner.forecast(stacked, block, replacements * of_one)
    print(forecast.line(), flush=True)
    forecast.require()
