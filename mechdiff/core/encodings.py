"""Text of files that others wrote, of which some programs mark the encoding by their first bytes."""

import codecs

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # of Windows' PowerShell and of spreadsheets


def decoded(content: bytes, errors: str = "strict") -> str:
    """The text of a file in UTF-8 or, where its mark says so, UTF-16; without the mark, which would become
    part of the first word, and with "\\n" at the end of each line.

    Args:
      errors: as of `bytes.decode`.

    Raises:
      UnicodeDecodeError: other bytes, where `errors` is strict.

    Example:
      >>> [decoded("a b".encode(name)) for name in ("utf-8", "utf-8-sig", "utf-16")]
      ['a b', 'a b', 'a b']
    """
    text = content.decode("utf-16" if content.startswith(WIDE) else "utf-8-sig", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")
