"""Figures as part of the page: one SVG for both themes, text as text, marks that know their component.

An artist whose gid is made by `mark` or `cells` becomes a group with data attributes, which report.js
reads; all other ids are made unique on the page. A figure is drawn once in each theme; the two differ in
color alone, and each color becomes CSS `light-dark(...)`, so that the reader's theme decides.
"""

import re

from mechdiff.core.errors import ConfigError

_COLOR = re.compile(r"#[0-9a-f]{6}\b")
_TAG = re.compile(r"<[^>]*>")
_LONG = re.compile(r"(\.\d{2})\d+")
_ID = re.compile(r'\sid="([^"]*)"')
_REFERENCE = re.compile(r'(url\(|href=")#([^")]+)')
_RECTANGLE = re.compile(r"M (\S+) (\S+) ?\nL (\S+) \2 ?\nL \3 (\S+) ?\nL \1 \4 ?\nL \1 \2 ?\n")
_CELLS = re.compile(r"(<g data-cells=[^>]*>)\n(.*?)(</g>)", re.DOTALL)
_CELL = re.compile(r'<path d="([^"]*)" style="([^"]*)"/>\n')
_STEPS = re.compile(r'(?<= d=")[^"]*')
_POINT = re.compile(r'<path d="M[-\d.]+ [-\d.]+" [^>]*/>\n')
_NEIGHBORS = re.compile(r"M(\S+) (\S+)H(\S+)V(\S+)H\1zM\3 \2H(\S+)V\4H\3z")
_UPRIGHT = re.compile(r' transform="rotate\(-?0 [^)]*\)"')
_CLIP = re.compile(r' clip-path="[^"]*"')
SEPARATOR = "|"


def mark(component: str, ablation: str = "") -> str:
    """The gid of an artist that stands for a component, under one ablation or (empty) under all."""
    return SEPARATOR.join(("mark", component, ablation))


def told(component: str, text: str) -> str:
    """The gid of an artist that stands for a component and has a hover text."""
    return SEPARATOR.join(("told", component, text))


def cells(statistic: str, rows: list[int]) -> str:
    """The gid of a mesh of cells, row by row; `rows` are their components' or heads' indices in the results.

    Args:
      statistic: an ablation, or the name of an attention statistic.
    """
    return SEPARATOR.join(("cells", statistic, ",".join(map(str, rows))))


def cover(name: str) -> str:
    """The gid of an artist that lies over cells and lets the pointer through."""
    return SEPARATOR.join(("cover", name))


def themed(light: str, dark: str, prefix: str, alt: str) -> str:
    """One inline `<svg>` of the same figure drawn in two themes.

    Args:
      prefix: of ids; unique on the page.
      alt: alternative text.
    Raises:
      ConfigError: the drawings differ in more than colors.
    """
    light, dark = _plain(light, prefix), _plain(dark, prefix)
    if _COLOR.sub("#", light) != _COLOR.sub("#", dark):
        raise ConfigError(f"figure {prefix} differs between themes in more than its colors")
    others = iter(_COLOR.findall(dark))
    merged = _with_few_paths(_COLOR.sub(lambda match: _either(match.group(), next(others)), light))
    return re.sub(
        r"<svg ", f'<svg role="group" aria-label="{_escape(alt)}" data-figure="{prefix}" ', merged, count=1
    )


def _either(light: str, dark: str) -> str:
    return light if light == dark else f"light-dark({light},{dark})"


def _plain(svg: str, prefix: str) -> str:
    """The drawing without prolog and namespaces, short numbers, ids by order, and gids as data attributes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style>.*?</style>\s*|<style [^>]*>.*?</style>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    referenced = {name for _, name in _REFERENCE.findall(svg)}
    shortened: dict[str, str] = {}

    def short(name: str) -> str:
        return shortened.setdefault(name, f"{prefix}-{len(shortened)}")

    def identify(match: re.Match) -> str:
        name = match.group(1)
        if SEPARATOR in name:
            return _data(*name.split(SEPARATOR))
        return f' id="{short(name)}"' if name in referenced else ""

    svg = _ID.sub(identify, svg)
    svg = _REFERENCE.sub(lambda match: f"{match.group(1)}#{short(match.group(2))}", svg)
    svg = _UPRIGHT.sub("", _TAG.sub(lambda match: _LONG.sub(r"\1", match.group()), svg))
    svg = _with_short_cells(re.sub(r"\n\s*", "\n", svg).strip())
    svg = _STEPS.sub(lambda match: re.sub(r" ?\n|(?<=[A-Za-z]) ", "", match.group()), svg)
    return _POINT.sub("", svg)  # a line of one point, which draws nothing


def _with_short_cells(svg: str) -> str:
    """Rectangles by their sides, and cells of a mesh, which lie within their axes, without a clip each: maps
    are most of a report."""
    svg = _RECTANGLE.sub(r"M\1 \2H\3V\4H\1z", svg)
    return _CELLS.sub(lambda match: _CLIP.sub("", match.group()), svg)


def _with_few_paths(svg: str) -> str:
    """Cells of one color as one path, about half the letters; report.js knows a cell by its index."""

    def joined(match: re.Match) -> str:
        head, cells, tail = match.groups()
        if _CELL.sub("", cells).strip():  # something else is drawn there too
            return match.group()
        colors: dict[str, list[str]] = {}
        for steps, color in _CELL.findall(cells):
            colors.setdefault(color, []).append(steps)
        shapes = ((_widened("".join(steps)), color) for color, steps in colors.items())
        paths = (f'<path d="{shape}" style="{color}"/>\n' for shape, color in shapes)
        crisp = head.replace("<g ", '<g shape-rendering="crispEdges" ')  # no seams between cells
        return f"{crisp}\n{''.join(paths)}{tail}"

    return _CELLS.sub(joined, svg)


def _widened(cells: str) -> str:
    """The cells, those that follow each other in a row as one."""
    while (shorter := _NEIGHBORS.sub(r"M\1 \2H\5V\4H\1z", cells)) != cells:
        cells = shorter
    return cells


def _data(what: str, name: str, extra: str = "") -> str:
    if what == "cells":
        return f' data-cells="{name}" data-rows="{extra}"'
    if what == "told":
        return f' data-c="{name}" data-told="{extra}"'
    if what == "mark":
        return f' data-c="{name}" data-a="{extra}"'
    return ' class="cover"'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
