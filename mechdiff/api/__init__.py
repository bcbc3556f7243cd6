"""The daily face: load a model, change it, sample, sweep, compare; objects that print what they are.

Methods of `Model` and `Result` are thin: each calls one pure function that is public here or in a room below.
"""

from mechdiff.api.compare import Comparison, compare
from mechdiff.api.course import Course, compare_steps
from mechdiff.api.loading import load
from mechdiff.api.model import Model
from mechdiff.api.result import Result, sweep
from mechdiff.api.screening import Screen, screen
from mechdiff.api.show import Samples, Sheet, show

__all__ = [
    "Comparison",
    "Course",
    "Model",
    "Result",
    "Samples",
    "Screen",
    "Sheet",
    "compare",
    "compare_steps",
    "load",
    "screen",
    "show",
    "sweep",
]
