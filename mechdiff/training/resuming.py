"""Whether a run can go on from a checkpoint: with which settings, and on which images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechdiff.core import processes
from mechdiff.core.config import ExperimentConfig, TrainConfig
from mechdiff.core.errors import ConfigError
from mechdiff.storage import exchange

FREE = ("name", "sweep", "study", "train.steps", "train.keep", "train.fsdp")  # may change in a paused run
PLACES = ("data.path", "data.cache")  # these too, where the checkpoint says what the images (not classes) are


def free_settings(config: ExperimentConfig, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that may differ from those of the checkpoint with this metadata."""
    return FREE + PLACES if "images" in metadata and not config.unet.classes else FREE


def check(
    train: TrainConfig, workdir: Path, step: int, metadata: Mapping[str, Any], images: dict[str, dict]
) -> None:
    """Refuses a run that can't go on from `step`, and warns of what a change of settings does.

    Args:
      metadata: of the checkpoint.
      images: what they are now: split -> `digest` and `count`.

    Raises:
      ConfigError: other images than before, or fewer steps than are done.
    """
    then = metadata.get("images", images)
    changed = [split for split in images if then[split] != images[split]]
    if changed:
        split = changed[0]
        before, after = (f"{of[split]['count']} of digest {of[split]['digest'][:8]}" for of in (then, images))
        raise ConfigError(
            f"the {split} images of {exchange.address_of(workdir)} have changed since step {step} "
            f"({before} then, {after} now); bring them back, or start in another --workdir"
        )
    if step > train.steps:
        raise ConfigError(
            f"{step} steps are done in {exchange.address_of(workdir)}, train.steps={train.steps} is "
            "fewer; raise it, or start in another --workdir"
        )
    before = metadata["config"]["train"]["steps"]
    if step < train.steps != before and processes.is_first():
        logging.warning(
            "train.steps=%d was %d until step %d; the learning rate now decays over all %d",
            train.steps, before, step, train.steps,
        )  # fmt: skip
    snapshots = workdir / "snapshots"
    gone = [kept for kept in train.keep if kept <= step and not (snapshots / str(kept)).is_dir()]
    if gone and processes.is_first():
        logging.warning("train.keep=%s: step %d is done already, and was not kept", gone, step)
