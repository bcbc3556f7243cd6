"""Kernels of a program that XLA compiled for an accelerator, from its text."""

import collections
import re

import numpy as np

NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional"}
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8}


def moved(text):
    """Kind of kernel -> how many there are and the bytes that they read and write, of a compiled program's
    text. A loop counts once; a slice counts as all that it is taken from.

    Example:
      >>> moved("ENTRY %main (x: f32[8]) -> f32[8] {\\n  %x = f32[8]{0} parameter(0)\\n"
      ...         "  ROOT %add_fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%add\\n}\\n")
      {'add_fusion': (1, 64)}
    """
    text = re.sub(r"\{[\d,]*:[^{}]*\}", "", text)  # a TPU's layouts, which have brackets
    inner = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    kinds = collections.defaultdict(lambda: (0, 0))
    sizes, counting = {}, False
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line):
            sizes, counting = {}, head[1] not in inner
        made = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)", line)
        if not made or not counting:
            continue
        name, result, operation, operands = made.groups()
        sizes[name] = _size(result)
        if operation in NO_KERNEL:
            continue
        read = sum(sizes.get(operand.strip().lstrip("%"), 0) for operand in operands.split(","))
        count, size = kinds[kind := _kind(name, operation, line)]
        kinds[kind] = count + 1, size + read + sizes[name]
    return dict(kinds)


def _kind(name, operation, line):
    target = re.search(r'custom_call_target="([^"]+)"', line)
    return target[1] if target else re.sub(r"[.\d]+$", "", name) if operation == "fusion" else operation


def _size(shapes):
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(
        BYTES.get(kind, 0) * int(np.prod([int(n) for n in dims.split(",") if n])) for kind, dims in arrays
    )
