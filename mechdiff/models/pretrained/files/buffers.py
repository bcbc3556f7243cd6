"""Tables of noise levels that a diffusion saves beside its network, as those of CompVis and Palette do."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import CheckpointError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.pretrained.files.tensors import State
from mechdiff.models.pretrained.lucidrains.noise_levels import rounded_to

BETAS, SHARES = "betas", ("alphas_cumprod", "gammas")  # names of alphas_bar
TABLES = re.compile(  # all that follow from them
    rf"(.*\.)?({BETAS}|({'|'.join(SHARES)})(_prev)?|(sqrt|log)_\w*({'|'.join(SHARES)})|posterior_\w+"
    r"|(p2_)?loss_weight|lvlb_weights)"
)
# Of the type that a table was stored in; in float32 cumulative products are made.
TOLERANCE = {"": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}


def without_buffers(state: State) -> tuple[dict, dict]:
    """The state without tables of noise levels, and these tables; as it is where none of them tells the
    levels, so that what is not known stays unused.

    Example:
      >>> kept, tables = without_buffers({"betas": np.ones(4), "conv.bias": np.ones(4)})
      >>> list(kept), list(tables)
      (['conv.bias'], ['betas'])
    """
    tables = {name: value for name, value in state.items() if _may_be_table(name, value)}
    if not any(name.rpartition(".")[2] in (BETAS, *SHARES) for name in tables):
        return dict(state), {}
    return {name: value for name, value in state.items() if name not in tables}, tables


def _may_be_table(name: str, value: np.ndarray) -> bool:
    return value.ndim == 1 and value.size > 0 and TABLES.fullmatch(name) is not None


def check_buffers(tables: Mapping[str, np.ndarray], diffusion: DiffusionConfig, path: Path) -> list[str]:
    """A note on tables of noise levels, which must be those of the config.

    Raises:
      CheckpointError: they are others.
    """
    schedule = make_schedule(diffusion)
    for name, table in tables.items():
        leaf = name.rpartition(".")[2]
        if leaf not in (BETAS, *SHARES):
            continue
        ours = np.asarray(schedule.betas if leaf == BETAS else schedule.alphas_bar, np.float64)
        tolerance = TOLERANCE[rounded_to(table)]
        if table.shape != ours.shape or not np.allclose(table, ours, rtol=tolerance, atol=1e-6):
            there, said = (f"{len(x)} from {x[0]:.4g} to {x[-1]:.4g}" for x in (table, ours))
            raise CheckpointError(
                f"{path}: {name} are {there}, but those of its config (or assumed) {said}; correct the "
                "noise levels of the config, or state them (--noise_schedule, --noise_steps and --prediction "
                "together; --beta_start, --beta_end), or leave the table out of the file if it is wrong"
            )
    if not tables:
        return []
    return [f"noise levels beside the network ({', '.join(tables)}) are those of its config (or assumed)"]
