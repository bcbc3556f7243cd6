"""What a sweep will take of the memory, said before it begins."""

from mechdiff.core.config import SweepConfig
from mechdiff.interventions import build
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.sweeps.execution import memory
from mechdiff.sweeps.execution.engine import Engine

MOMENTS = 8  # times one fill in float32, that four sums in float64 take


def print_memory_forecast(
    subject: Denoiser, config: SweepConfig, kinds: tuple[str, ...] | None = None, fills: int = 0
) -> None:
    """Prints what a sweep of a subject will take of the memory, before it begins.

    Args:
      kinds: of ablation, instead of those of the config.
      fills: how many fills of every site are held besides.
    Raises:
      ConfigError: it can't fit.
    """
    kinds = config.kinds if kinds is None else kinds
    runner = Engine(subject.unet, subject.schedule, subject.params, config.chunk)
    fills += config.timesteps * sum({"mean": 1, "noise": 2, "optimal": 1}.get(kind, 0) for kind in kinds)
    fills += config.image_block * ("resample" in kinds)
    fills += bool(fills) * (len(runner.devices) + MOMENTS)  # of one timestep: placed, and being averaged
    stacked = build.leave_one_out(subject.identity, components(subject.unet))[1]
    block = min(config.images, config.image_block)
    forecast = runner.forecast(stacked, block, fills and fills * memory.replacement_bytes(subject.unet))
    print(forecast.line(), flush=True)
    forecast.require()
