"""What an examination refuses before it computes anything."""

import pytest

from mechdiff.core.config import override
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.study import examination


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("study.circuits=mean", "sweep.ablations=zero", "sweep.reference_images=0"), "reference_images"),
        (
            ("study.circuits=zero", "sweep.images=3"),
            r"sweep\.images=3 are too few to find and score circuits",
        ),
    ],
)
def test_circuits_that_could_not_be_found_are_refused_before_a_network_is_read(tmp_path, settings, line):
    config = override(preset("tiny"), settings)
    with pytest.raises(ConfigError, match=line):
        examination.examine_and_pack("name", "no folder", pytest.fail, config, tmp_path)
    assert not list(tmp_path.iterdir())
