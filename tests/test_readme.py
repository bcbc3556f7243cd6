"""README's Python runs, and its numbers are true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_example_prints_what_stands_below_it(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = (ROOT / "README.md").read_text()
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    exec(compile(code, "README.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = [line.split() for line in printed.splitlines()]
    assert lines[0] == told[0]
    for here, there in zip(lines[1:], told[1:], strict=True):
        assert here[:2] == there[:2]
        assert [float(x) for x in here[2:]] == pytest.approx([float(x) for x in there[2:]], abs=0.11)
    assert {path.name for path in tmp_path.glob("*.png")} == {"rows.png", "skip.png"}


def test_it_is_a_door_not_the_house():
    assert (ROOT / "README.md").stat().st_size <= 9_000
