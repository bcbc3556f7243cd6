"""Tables and counts as plain text, for printed results."""

from collections.abc import Iterable, Sequence

import pandas as pd


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
      >>> counted(1, "network"), counted(0, "network"), counted(1200, "network")
      ('1 network', '0 networks', '1,200 networks')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell.

    The first column is flush left, the others flush right, two spaces apart.

    Args:
      heads: title of each column.
      rows: cells of each row, formatted, as many as `heads`.

    Example:
      >>> for line in text_table(("component", "score"), [("mid.attn0.head1", "0.52"), ("up0.time", "-1.3")]):
      ...     print(line)
      component       score
      mid.attn0.head1  0.52
      up0.time         -1.3
    """
    cells = [list(row) for row in rows]
    if not cells:
        return ["  ".join(heads)]
    names = [row[0] for row in cells]
    # pandas writes the index flush left; the name of the columns is the index's title.
    columns = pd.Index(heads[1:], name=heads[0])
    frame = pd.DataFrame([row[1:] for row in cells], index=names, columns=columns)
    return [line.rstrip() for line in frame.to_string(line_width=None).splitlines()]
