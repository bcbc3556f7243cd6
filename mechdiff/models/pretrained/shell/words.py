"""Text as a shell's commands, each a list of words.

Of a shell's grammar only that is understood which decides where words and commands end:

    word      characters, quotes and escapes up to a gap or an end
    gap       blanks, or the end of a line behind a backslash
    end       the end of a line, `;`, `&` or `|`
    comment   `#` at the start of a word, up to the end of the line, which ends the command

A command goes on in the next line, against a shell, where an array is open or a flag has no value yet.
What another command puts out, `$(...)` and that in backticks, is a word, or part of one.
"""

import itertools
import re
import shlex
from collections.abc import Iterator

OUTPUT = re.compile(r"\$\((?:[^()\n]|\([^()\n]*\))*\)|`[^`\n]+`")  # of a command, in place of it
LEXEME = re.compile(
    r"(?P<gap>(?:[^\S\n]|\\[ \t\r]*(?:\n|\Z))+)"  # a line's end behind a backslash is a gap, also the last
    r"|(?P<end>[\n;&|]+)"
    r"|(?P<comment>#[^\n]*)"  # at the start of a word: other words are taken whole
    r"|(?P<word>(?:\\(?![ \t\r]*(?:\n|\Z)).|\"(?:\\.|[^\"\\])*\"|'[^']*'"
    rf"|{OUTPUT.pattern}|[^\s\"'\\;&|])+)",
    re.DOTALL,
)
JOINED = re.compile(r"&&|\|\|")
UNFINISHED = re.compile(r"--[A-Za-z][\w-]*")  # its value is perhaps on the next line
ARRAY = re.compile(r"[A-Za-z_]\w*\+?=\(")
# First words of a command behind which, and `&&`, the next one runs or not; behind others it runs as a rule.
TESTING = re.compile(r"\[\[?|test|grep|which|command|type|true|false|\(\(.*", re.DOTALL)
PATTERN = re.compile(r"\(?[^()$=]*\)")  # in front of a branch of `case`
LEADING = (
    "$",
    "%",
    ">",
    "then",
    "do",
    "else",
    "if",
    "while",
    "until",
    "!",
    "{",
    "(",
)  # prompts and a shell's words


def commands(text: str) -> Iterator[list[str]]:
    r"""The words of each command, quotes kept, without prompts and brackets. `if` and `fi` are commands of
    their own, also around what runs on a condition behind `&&` or `||`, and so is `while`.

    Raises:
      ValueError: quotes that don't close.

    Example:
      >>> list(commands("$ a.py --x \\\n 1  # one\nF='a b'; cd c"))
      [['a.py', '--x', '1'], ["F='a b'"], ['cd', 'c']]
      >>> list(commands("[ a ] && A=1\nif b; then c; fi"))
      [['[', 'a', ']'], ['if'], ['A=1'], ['fi'], ['if'], ['b'], ['c'], ['fi']]
      >>> list(commands("case $1 in -h|--help) A=1;; *) A=2;; esac"))
      [['case', '$1', 'in'], ['A=1'], ['A=2'], ['esac']]
    """
    words: list[str] = []
    offset = on_condition = cases = 0
    while offset < len(text):
        match = LEXEME.match(text, offset)
        if not match:
            raise ValueError("No closing quotation")
        offset = match.end()
        if match.lastgroup == "word":
            words.append(match[0])
        elif match.lastgroup == "end" and words and not _goes_on(words, match[0]):
            if words[0] == "case" and "in" in words:
                head = words.index("in") + 1
                yield words[:head]
                words, cases = words[head:], cases + 1
            if cases:
                cases -= words[:1] == ["esac"]
                words = _of_branch(words, match[0])
            yield from _opened(words)
            if _is_condition(words, match[0]):
                on_condition += 1
                yield ["if"]
            elif not JOINED.search(match[0]):
                yield from [["fi"]] * on_condition
                on_condition = 0
            words = []
    if words:
        yield from _opened(words)


def _of_branch(words: list[str], end: str) -> list[str]:
    """The words of a command inside of `case`, without the pattern of its branch."""
    if end == "|" and len(words) == 1:  # a pattern, of which there are others
        return []
    return words[1:] if words and PATTERN.fullmatch(words[0]) else words


def _opened(words: list[str]) -> Iterator[list[str]]:
    """A command, behind an `if` or `while` that it begins with."""
    leading = [*itertools.takewhile(LEADING.__contains__, words)]
    if "if" in leading:
        yield ["if"]
    if "while" in leading or "until" in leading:
        yield ["while"]
    if bare := _unbracketed(words):
        yield bare


def _is_condition(words: list[str], end: str) -> bool:
    """Whether a command decides, by how it ends, what runs behind it."""
    joined = JOINED.search(end)
    if not joined:
        return False
    return joined[0] == "||" or bool(TESTING.fullmatch("".join(_unbracketed(words)[:1])))


def _goes_on(words: list[str], end: str) -> bool:
    """Whether a command goes on in the next line: an array is open, or a flag has no value yet."""
    if end.strip("\n"):
        return False
    opened = any(ARRAY.match(word) for word in words) and length_of_array(words) > len(words)
    return opened or bool(UNFINISHED.fullmatch(words[-1]))


def length_of_array(words: list[str]) -> int:
    """How many of the words the array has that they begin with; one more if it does not end."""
    first = next(i for i, word in enumerate(words) if ARRAY.match(word))
    depth = 0
    for i, word in enumerate(words[first:], first):
        depth += word.count("(") - word.count(")")
        if depth <= 0:
            return i + 1
    return len(words) + 1


def _unbracketed(words: list[str]) -> list[str]:
    """The words without a prompt, a shell's leading words, and the brackets of a subshell."""
    while words and (words[0] in LEADING or re.match(r"\([-A-Za-z$]", words[0])):
        words = [words[0][1:], *words[1:]] if len(words[0]) > 1 and words[0][0] == "(" else words[1:]
    if words and not ARRAY.match(words[0]) and words[-1].count(")") > words[-1].count("("):
        words = [*words[:-1], words[-1].removesuffix(")")]
    return [word for word in words if word]


def split(text: str) -> list[str]:
    """The words of a text as `shlex.split`, with what other commands put out in one piece.

    Example:
      >>> split("'a b' c-$(date +%F)")
      ['a b', 'c-$(date +%F)']
    """
    whole = OUTPUT.sub(lambda match: match[0].replace(" ", "\0"), text)
    return [word.replace("\0", " ") for word in shlex.split(whole)]


def unquoted(word: str) -> str:
    """A word without its quotes; ends of lines behind a backslash within them are gaps."""
    return " ".join(shlex.split(re.sub(r"\\[ \t\r]*\n", " ", word)))
