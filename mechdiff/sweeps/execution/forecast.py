"""What a sweep will take of the memory, said before it begins."""

from mechdiff.core.config import SweepConfig
from mechdiff.interventions import build
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.sweeps.execution import memory
from mechdiff.sweeps.execution.engine import Engine

MOMENTS = 8  # times one fill in float32, that four sums in float64 take


def print_memory_forecast(
    denoiser: Denoiser, config: SweepConfig, ablations: tuple[str, ...] | None = None, replacements: int = 0
) -> None:
    """Prints what a sweep of a subject will take of the memory, before it begins.

    Args:
      kinds: of ablation, instead of those of the config.
      fills: how many fills of every site are held besides.
    Raises:
      ConfigError: it can't fit.
    """
    ablations = config.ablations if ablations is None else ablations
    runner = Engine(denoiser.unet, denoiser.schedule, denoiser.params, config.chunk)
    replacements += config.timesteps * sum(
        {"mean": 1, "noise": 2, "optimal": 1}.get(ablation, 0) for ablation in ablations
    )
    replacements += config.image_block * ("resample" in ablations)
    replacements += bool(replacements) * (
        len(runner.devices) + MOMENTS
    )  # of one timestep: placed, and being averaged
    stacked = build.leave_one_out(denoiser.identity, components(denoiser.unet))[1]
    block = min(config.images, config.image_block)
    forecast = runner.forecast(
        stacked, block, replacements and replacements * memory.replacement_bytes(denoiser.unet)
    )
    print(forecast.line(), flush=True)
    forecast.require()
