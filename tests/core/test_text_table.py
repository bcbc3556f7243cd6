"""Tables as plain text."""

from mechdiff.core.text_table import text_table


def test_columns_are_as_wide_as_their_widest_cell_and_titles_may_repeat():
    lines = text_table(("", "worst", "worst"), [("a", "1", "12345678"), ("a", "-2", "")])
    assert lines == ["  worst     worst", "a     1  12345678", "a    -2"]


def test_without_rows_the_titles_are_left():
    assert text_table(("claim", "p"), []) == ["claim  p"]
