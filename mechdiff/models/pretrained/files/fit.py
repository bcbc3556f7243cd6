"""Whether a foreign function and a file's tensors fit each other."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mechdiff.core.errors import CheckpointError
from mechdiff.models.pretrained.files.tensors import State


class _Tensors(dict):
    """Shapes by name that remember which of them were taken."""

    def __init__(self, shapes: Mapping[str, Any]):
        super().__init__(shapes)
        self.taken = set()

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return super().__getitem__(name)


@contextlib.contextmanager
def misfit(path: Path, what: str) -> Iterator[None]:
    """Turns the errors of reading a network off tensors that are not its own into one line.

    Args:
      what: whose network, for messages.
    Raises:
      CheckpointError: a tensor is absent, or has a shape that can't be.
    """
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path} does not fit {what}: 1 missing: {error.args[0]}") from None
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(f"{path}: shapes of its tensors don't fit one another ({reason})") from None


def check_fit(
    network: Callable, state: State, example: tuple, path: Path, what: str, unbiased: str = "$^"
) -> None:
    """Checks that `network(tensors, *example)` finds and uses every tensor, and that their shapes fit.

    Args:
      what: whose network, for messages.
      unbiased: a pattern of the names of weights that may have no bias; all others must have one.
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

    for weight, value in state.items():
        bias = f"{weight.removesuffix('.weight')}.bias"
        if not weight.endswith(".weight"):
            continue
        if bias not in state and not re.search(unbiased, weight):
            raise CheckpointError(f"{path} does not fit {what}: 1 missing: {bias}")
        if bias in state and state[bias].shape != value.shape[:1]:
            shape = state[bias].shape
            raise CheckpointError(f"{path} does not fit {what}: {bias} has the wrong shape, {shape}")
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in state.items()}
    with misfit(path, what):
        jax.eval_shape(run, shapes, *example)
