"""Averages that were saved without the names of what they average."""

import re
from pathlib import Path

from mechdiff.core.errors import CheckpointError
from mechdiff.models.pretrained.files.tensors import State

DOTLESS = (
    "model_ema."  # of `LitEma` (latent-diffusion's ldm/modules/ema.py), which averages what `model` holds
)
AVERAGED = "model."
COUNTERS = (f"{DOTLESS}decay", f"{DOTLESS}num_updates")
NUMBERED = re.compile(r"(.*\.)?shadow_params\.\d+")  # of `ExponentialMovingAverage` (score_sde, torch_ema)


def with_names(state: State, weights: str | None, path: Path) -> tuple[State, tuple[str, ...]]:
    """The tensors, `LitEma`'s averages by the names of what they average, which it takes the dots out of, and
    none of averages that have numbers for names; and a note on these.

    Raises:
      CheckpointError: averages that have numbers for names, unless `weights` asks for the raw tensors.
    """
    numbered = [name for name in state if NUMBERED.fullmatch(name)]
    if numbered and weights != "raw":
        raise CheckpointError(
            f"{path} holds averages that have numbers for names ({numbered[0]}), so which is which is not "
            "known; --weights=raw reads the others; copy averages into the network (copy_to) and save that "
            "to read them"
        )
    notes = (f"averages under {numbered[0]!r} and so on are not read",) if numbered else ()
    return _dotted({name: value for name, value in state.items() if name not in numbered}), notes


def _dotted(state: State) -> State:
    """The state with dots in the names of `LitEma`'s averages; as it is, where that is not what they are."""
    by_dotless: dict[str, list[str]] = {}
    for name in state:
        if name.startswith(AVERAGED):
            own = name.removeprefix(AVERAGED)
            by_dotless.setdefault(DOTLESS + own.replace(".", ""), []).append(DOTLESS + own)
    averages = {name for name in state if name.startswith(DOTLESS)}.difference(COUNTERS)
    if not averages or any(len(by_dotless.get(name, ())) != 1 for name in averages):
        return state
    kept = {name: value for name, value in state.items() if name not in COUNTERS}
    return {by_dotless[name][0] if name in averages else name: value for name, value in kept.items()}
