"""Whether a foreign function and a file's tensors fit each other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mechdiff.core.errors import CheckpointError
from mechdiff.models.pretrained.tensors import State


class _Tensors(dict):
    """Shapes by name that remember which of them were taken."""

    def __init__(self, shapes: Mapping[str, Any]):
        super().__init__(shapes)
        self.taken = set()

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return super().__getitem__(name)


def check_fit(network: Callable, state: State, example: tuple, path: Path, what: str) -> None:
    """Checks that `network(tensors, *example)` finds and uses every tensor, and that their shapes fit.

    Args:
      what: whose network, for messages.
    Raises:
      CheckpointError: in one line.
    """

    def run(tensors: dict, *example: Any) -> Any:
        read = _Tensors(tensors)
        output = network(read, *example)
        unused = sorted(set(state) - read.taken)
        if unused:
            raise CheckpointError(f"{path} does not fit {what}: unused: {', '.join(unused[:4])}")
        return output

    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in state.items()}
    for name, value in state.items():
        weight = f"{name.removesuffix('.bias')}.weight"
        if name.endswith(".bias") and weight in state and value.shape != state[weight].shape[:1]:
            raise CheckpointError(f"{path} does not fit {what}: {name} has the wrong shape, {value.shape}")
    try:
        jax.eval_shape(run, shapes, *example)
    except KeyError as error:
        raise CheckpointError(f"{path} does not fit {what}: 1 missing: {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(f"{path}: shapes of its tensors don't fit one another ({reason})") from None
