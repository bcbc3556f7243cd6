"""README's Python runs, and its numbers are true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_example_prints_the_numbers_that_the_text_names(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    printed = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    named = re.search(r"It prints ([\d.]+) for the whole network and ([\d.]+) without the skip", text)
    assert printed == pytest.approx([float(number) for number in named.groups()], abs=5e-4)


def test_it_is_a_door_not_the_house():
    assert (ROOT / "README.md").stat().st_size <= 9_000
