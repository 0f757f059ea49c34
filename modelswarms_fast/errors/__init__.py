"""The exceptions that end a run with one sentence, and how a sentence quotes what it was given.

`arguments` checks the types of what is given by their annotations, `files` reads files that anybody may have written
and makes files durable, `modules` imports what the user names.
"""

from __future__ import annotations

import re

QUOTED = 100
"""Most characters that a sentence quotes of one value."""
LONGEST = 1200
"""Most characters of a sentence, however much it quotes."""

_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]")
_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # a name and a password in an address
_LONG_WORD = re.compile(r"\S{250,}")
_LINE_ENDS = re.compile(r" *[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def short(value: object, longest: int = QUOTED) -> str:
    """A value as a sentence may quote it: on one line, without control characters, of at most `longest` characters.

    Texts of other libraries and of servers go through it as well: their colour codes are dropped, line ends become
    spaces, and other characters that a terminal would obey are written as escapes. A name and a password in an address
    are left out. A longer text loses its end.
    """
    text = one_line(_text(value)[: 8 * longest])
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def quoted(value: object, longest: int = QUOTED) -> str:
    """A value as Python would write it, so in quotes if it is a text; else as `short`."""
    if isinstance(value, str):
        value = without_password(value)
        value = repr(value[:longest]) + "…" * (len(value) > longest)
    return short(value, longest + 3)


def without_password(text: str) -> str:
    """A text in which addresses have no name and password."""
    return _USERINFO.sub("…", text)


def one_line(text: str) -> str:
    """A text on one line, without colour codes; other characters that are not printed are written as escapes."""
    text = _LINE_ENDS.sub(" ", _COLOURS.sub("", text)).strip()
    return text if text.isprintable() else "".join(map(_printed, text))


def visible(text: str) -> str:
    """A text, of several lines or one, that no terminal obeys: without colour codes, the rest written as escapes."""
    return "".join(one if one in "\n\t" else _printed(one) for one in _COLOURS.sub("", text))


def _printed(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _text(value: object) -> str:
    """What `str` makes of an error or a text, and `repr` of any other value, if they can."""
    try:
        return without_password(str(value) if isinstance(value, str | BaseException) else repr(value))
    except Exception:  # nested too deeply, or a whole number of more digits than Python prints
        return f"what cannot be shown, of type {type(value).__name__}"


def _sentence(message: object) -> str:
    """A message on one line of at most LONGEST characters. A longer one keeps its beginning and its end, the remedy.

    So does a word that is longer than any path: whoever raised the error need not think of it.
    """
    text = _text(message)
    if len(text) > 8 * LONGEST:  # cleaned in part, so that megabytes cost no time
        text = f"{text[: 4 * LONGEST]}…{text[-4 * LONGEST :]}"
    text = _LONG_WORD.sub(lambda word: _without_middle(word[0], QUOTED), one_line(text))
    return _without_middle(text, LONGEST)


def _without_middle(text: str, longest: int) -> str:
    tail = longest // 3
    return text if len(text) <= longest else f"{text[: longest - tail - 1]}…{text[-tail:]}"


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that names it and the remedy.

    The command line prints the message and exits with status 2, without a traceback. Whatever the message quotes, it is
    one line of at most LONGEST characters without control characters.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_sentence(message))


class NoScoreError(InputError):
    """No initial particle has a score, so that there is nothing to search from."""


class EngineError(RuntimeError):
    """An engine failed while it worked, and cannot go on: one sentence that says what happened.

    The command line treats it as it does an InputError.
    """

    trace = ""
    """Where it failed, if that was in another process."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_sentence(message))


class ParityError(EngineError):
    """The parity check found that an engine does not serve what it was given: one sentence that says which load.

    The command line prints the message and exits with status 3.
    """
