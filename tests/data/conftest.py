"""A small CelebA in its official layout."""

import pytest
from reference.celeba_packs import write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("celeba"))
