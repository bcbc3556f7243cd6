"""Weights that a file holds in parts, of which the program makes them whole when it runs."""

import re
from collections.abc import Iterable
from pathlib import Path

from mechdiff.core.errors import CheckpointError, shorten

PARTS = {  # by the names of the parts: what they are, and what makes the weights whole in PyTorch
    r"(^|[._])lora[._]|\.base_layer\.": ("adapters", "merge them (PEFT: model.merge_and_unload())"),
    r"\.parametrizations\.": ("a parametrization", "torch.nn.utils.parametrize.remove_parametrizations"),
    r"\.(weight|bias)_mask$": ("pruning", "torch.nn.utils.prune.remove"),
    r"\.(weight|bias)_(orig|u)$": ("spectral norm", "torch.nn.utils.remove_spectral_norm"),
    r"\.weight_g$": ("weight norm", "torch.nn.utils.remove_weight_norm"),
}


def check_whole(names: Iterable[str], path: Path) -> None:
    """Refuses weights in parts: any one of these alone is another network's.

    Raises:
      CheckpointError: names a part, and what makes the weights whole.

    Example:
      >>> check_whole(["q.weight", "q.lora_A.weight"], Path("a"))
      Traceback (most recent call last):
      mechdiff.core.errors.CheckpointError: a holds weights in parts ('q.lora_A.weight': adapters); make \
them whole before saving: merge them (PEFT: model.merge_and_unload())
    """
    names = list(names)
    for pattern, (what, way_out) in PARTS.items():
        for name in names:
            if re.search(pattern, name):
                raise CheckpointError(
                    f"{path} holds weights in parts ({shorten(name)}: {what}); make them whole before "
                    f"saving: {way_out}"
                )
