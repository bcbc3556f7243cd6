"""Modules by the names that they had before there were rooms."""

import importlib

import pytest

from mechdiff.core.old_names import MODULES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_moved_is_found_by_its_old_name(name):
    now = importlib.import_module(f"mechdiff.{MODULES[name]}")
    assert importlib.import_module(f"mechdiff.{name}") is now
    assert now.__spec__.name == now.__name__ == f"mechdiff.{MODULES[name]}"


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mechdiff\.nothing'"):
        importlib.import_module("mechdiff.nothing")
