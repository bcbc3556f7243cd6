"""Objects of a bucket (`gs://`, `s3://`) below one address, by fsspec; errors in one line."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechdiff.core.errors import ConfigError, DataError, MechdiffError


class Objects:
    """Files and small JSON records below `address`, by their names there.

    Raises:
      MechdiffError: (every method) the bucket is not there, or can't be read or written.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self.system = _file_system(self.address)

    def path(self, name: str) -> str:
        """The whole address of an object."""
        return f"{self.address}/{name}"

    def read(self, name: str) -> dict | None:
        """A record; None if it is not there.

        Raises:
          DataError: it is not JSON.
        """
        with self._plain_errors():
            try:
                return json.loads(self.system.cat_file(self.path(name)))
            except FileNotFoundError:
                return None
            except ValueError:
                raise DataError(f"{self.path(name)} is not JSON; remove it to go on") from None

    def write(self, name: str, record: dict) -> None:
        """Writes a record, in the place of an earlier one if need be."""
        self.put(name, _encoded(record))

    def create(self, name: str, record: dict) -> bool:
        """Writes a record that is not there yet; False: it is, or another process was first. The bucket
        decides (`If-None-Match` on S3, `ifGenerationMatch` on Google's)."""
        with self._plain_errors():
            try:
                self.system.pipe_file(self.path(name), _encoded(record), mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:  # S3, while another is just being written
                if "ConditionalRequestConflict" not in repr(error):
                    raise
                return False

    def put(self, name: str, content: bytes) -> None:
        """Writes an object."""
        with self._plain_errors():
            self.system.pipe_file(self.path(name), content)

    def get(self, name: str, target: Path) -> bool:
        """Copies an object into a file, which appears whole; False: there is none of that name."""
        aside = target.with_name(f".{target.name}.partial")
        with self._plain_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.system.get_file(self.path(name), str(aside))
                aside.replace(target)
                return True
            except FileNotFoundError:
                return False
            finally:
                aside.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        with self._plain_errors(), contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path(name))

    def names(self, under: str) -> list[str]:
        """All objects whose names begin with `under/`, sorted."""
        with self._plain_errors():
            self.system.invalidate_cache()
            root = self.system._strip_protocol(self.address)
            try:
                return sorted(name.removeprefix(f"{root}/") for name in self.system.find(self.path(under)))
            except FileNotFoundError:
                return []

    def modified(self, name: str) -> float | None:
        """When an object was written, by the bucket's clock, in seconds; None if it is not there."""
        with self._plain_errors():
            self.system.invalidate_cache()
            try:
                return self.system.modified(self.path(name)).timestamp()
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turns any error of a bucket's client into one line."""
        try:
            yield
        except MechdiffError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise MechdiffError(
                f"{self.address}: {reason}; check the bucket's name, your credentials and rights"
            ) from error


def _encoded(record: dict) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def _file_system(address: str) -> Any:
    """The client of a bucket, one of fsspec's."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(address)[0]
    except ImportError as error:
        raise ConfigError(f"{address}: {error}; pip install 'mechdiff[bucket]'") from None
