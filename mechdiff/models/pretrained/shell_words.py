"""Text as a shell's commands, each a list of words.

Of a shell's grammar only that is understood which decides where words and commands end:

    word      characters, quotes and escapes up to a gap or an end
    gap       blanks, or the end of a line behind a backslash
    end       the end of a line, `;`, `&` or `|`
    comment   `#` at the start of a word, up to the end of the line, which ends the command

A command goes on in the next line, against a shell, where an array is open or a flag has no value yet.
"""

import re
import shlex
from collections.abc import Iterator

LEXEME = re.compile(
    r"(?P<gap>(?:[^\S\n]|\\[ \t\r]*(?:\n|\Z))+)"  # a line's end behind a backslash is a gap, also the last
    r"|(?P<end>[\n;&|]+)"
    r"|(?P<comment>#[^\n]*)"  # at the start of a word: other words are taken whole
    r"|(?P<word>(?:\\(?![ \t\r]*(?:\n|\Z)).|\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\s\"'\\;&|])+)",
    re.DOTALL,
)
UNFINISHED = re.compile(r"--[A-Za-z][\w-]*")  # its value is perhaps on the next line
ARRAY = re.compile(r"[A-Za-z_]\w*\+?=\(")
LEADING = ("$", "%", ">", "then", "do", "else", "if", "while", "!", "{", "(")  # prompts and a shell's words


def commands(text: str) -> Iterator[list[str]]:
    r"""The words of each command, quotes kept, without prompts and brackets.

    Raises:
      ValueError: quotes that don't close.

    Example:
      >>> list(commands("$ a.py --x \\\n 1  # one\nF='a b'; cd c"))
      [['a.py', '--x', '1'], ["F='a b'"], ['cd', 'c']]
    """
    words: list[str] = []
    place = 0
    while place < len(text):
        match = LEXEME.match(text, place)
        if not match:
            raise ValueError("No closing quotation")
        place = match.end()
        if match.lastgroup == "word":
            words.append(match[0])
        elif match.lastgroup == "end" and words and not _goes_on(words, match[0]):
            yield _unbracketed(words)
            words = []
    if words:
        yield _unbracketed(words)


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


def unquoted(word: str) -> str:
    """A word without its quotes; ends of lines behind a backslash within them are gaps."""
    return "".join(shlex.split(re.sub(r"\\[ \t\r]*\n", " ", word)))
