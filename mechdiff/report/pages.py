"""What the pages of the report share: templates with their filters, style sheet and script."""

import json
import re
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from mechdiff.core.numerics import ROUNDING
from mechdiff.report import findings, style
from mechdiff.report.numbers import Value

NUMBER_AND_UNIT = re.compile(r"(?<=\d) %(?![\w(])")  # a line that breaks between the two


def render(template: str, **content: object) -> str:
    """A page of this folder's templates, whole in one file.

    Args:
      template: such as `report.html.j2`.
      content: its variables, besides `css` and `script`.

    Raises:
      jinja2.UndefinedError: a variable that the template uses is absent.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mechdiff.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": style.number, "precise": findings.precise, "between": findings.between}
    environment.filters["exact"] = _exact
    environment.filters["level"] = style.level_label
    environment.filters["pretty"] = _pretty
    environment.filters["uri"] = _png_uri
    environment.globals["rounding_exponent"] = f"{np.log10(ROUNDING):.0f}".replace("-", "−")
    page = environment.get_template(template).render(css=_file("css"), script=_file("js"), **content)
    return NUMBER_AND_UNIT.sub("\N{NO-BREAK SPACE}%", page)


def _file(kind: str) -> str:
    return resources.files("mechdiff.report").joinpath(f"report.{kind}").read_text("utf-8")


def _exact(value: Any) -> str:
    """Numbers in seven digits for an attribute: one, several, or an estimate and the ends of its interval."""
    if isinstance(value, Value):
        value = (value.estimate, value.low, value.high)
    return " ".join(f"{number:.7g}" for number in np.atleast_1d(value).tolist())


def _pretty(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def _png_uri(data: bytes) -> str:
    return style.data_uri(data, "image/png")
