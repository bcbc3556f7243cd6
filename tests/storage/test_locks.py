"""The lock of a results folder where there are locks, and where there are none."""

import errno

import pytest

from mechdiff.core.errors import BusyError, MechdiffError
from mechdiff.storage import locks


def test_a_second_holder_is_refused_with_the_first_ones_name(tmp_path):
    with (
        locks.lock(tmp_path),
        pytest.raises(BusyError, match=r"in use by process \d+ on"),
        locks.lock(tmp_path),
    ):
        pass
    with locks.lock(tmp_path):
        pass


def refuse(number):
    def flock(file, operation):
        raise OSError(number, "refused")

    return flock


@pytest.mark.parametrize("number", sorted(locks.NO_LOCKS))
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, number):
    monkeypatch.setattr(locks.fcntl, "flock", refuse(number))
    with pytest.warns(UserWarning, match="no file locks here"), locks.lock(tmp_path) as folder:
        assert folder == tmp_path


def test_a_system_without_fcntl_is_used_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(UserWarning, match="no flock"), locks.lock(tmp_path):
        pass


def test_other_errors_of_locking_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(MechdiffError, match="input/output error"), locks.lock(tmp_path):
        pass
