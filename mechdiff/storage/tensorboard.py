"""A run's log that TensorBoard shows as well; needs the extra `tensorboard` (tensorboardX, no TensorFlow)."""

from pathlib import Path
from typing import Any

from mechdiff.core.errors import ConfigError
from mechdiff.storage.run_log import RunLog


def writer_class() -> Any:
    """tensorboardX's `SummaryWriter`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError('--tensorboard needs tensorboardX; pip install "mechdiff[tensorboard]"') from None
    return SummaryWriter


class TensorBoardLog(RunLog):
    """As `RunLog`, and every number of a record as a scalar `kind/name` at its step, in `folder`."""

    def __init__(self, path: Path | str, folder: Path | str, resume_step: int = 0):
        """Opens both.

        Args:
          folder: of the event files, see `tensorboard --logdir`.
          resume_step: scalars of later steps are dropped, which the resumed run writes again.

        Raises:
          ConfigError: tensorboardX is not installed.
        """
        writer = writer_class()
        super().__init__(path, resume_step)
        self._writer = writer(str(folder), purge_step=resume_step + 1, write_to_disk=True)

    def append(self, record: dict) -> None:
        """Adds a line to the log, and its numbers to the event file."""
        super().append(record)
        step, kind = record.get("step"), record.get("kind", "run")
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Lets go of all files."""
        super().close()
        if hasattr(self, "_writer"):
            self._writer.close()
