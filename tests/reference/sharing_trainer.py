"""Runs of one config in one process share their compiled programs."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from mechdiff.training import loop


class SharingTrainer(loop.Trainer):
    """A `Trainer` that compiles nothing that an earlier one of the same config has compiled."""

    _made: ClassVar[dict] = {}

    def __init__(self, config, workdir, **options):
        super().__init__(config, workdir, **options)
        passes = self._losses, self._sample
        self._losses, self._sample = self._once("passes", lambda: passes)

    def _update(self, identity):
        make = super()._update
        return self._once("update", lambda: make(identity))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        train = dataclasses.replace(self.config.train, keep=())  # of no program's concern
        key = name, dataclasses.replace(self.config, train=train)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
