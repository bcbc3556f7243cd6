"""What tests of files that Orbax writes share."""

import gc

import pytest


@pytest.fixture(scope="module")
def collected_fast():
    """What other tests have left is not looked through after each test of a file."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def nothing_left_behind(collected_fast):
    """Orbax leaves tasks of closed event loops behind when it fails on a damaged file; what they say when
    they are collected is no news, and must not fall on whatever test runs then."""
    yield
    gc.collect()
