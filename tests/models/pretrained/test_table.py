"""The table of configurations in `models/pretrained/README.md` says what happens."""

import pytest
from reference.import_table import BEGIN, END, README, ROWS, line_of, outcome


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The rows of the table, in order."""
    return README.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda number: f"{number}-{ROWS[number].network}")
def test_a_configuration_ends_as_the_table_says(number, lines, tmp_path):
    assert len(lines) == len(ROWS) >= 60
    assert lines[number] == line_of(ROWS[number], outcome(ROWS[number], tmp_path))
