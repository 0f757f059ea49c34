"""What all fuzzers share: values, how a case is run and judged, how many there are, and the count of outcomes.

A case works, or is refused in one sentence, or is "other": a failure of the test. FUZZ_CASES says how many cases a
fuzzer has (default: the small profile's own number), FUZZ_SEED where the hypotheses begin, and FUZZ_JSON names a file
for the counts.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st

from modelswarms_fast.errors import InputError

LONGEST = 450  # characters of a sentence: two quotations, a path, and what to do
LONGEST_WITH_A_COMMAND = 1200  # that ends in a command to copy
SECONDS = 120  # of a case, on a machine that others use as well
COUNTS: Counter[tuple[str, str]] = Counter()
"""Cases by fuzzer and outcome."""
OUTCOMES = ("works", "one sentence", "other")


def fuzz(cases: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on so many examples, the same ones each time unless FUZZ_SEED is given."""
    given = os.environ.get("FUZZ_SEED")
    profile = settings(
        max_examples=int(os.environ.get("FUZZ_CASES", cases)),
        derandomize=given is None,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return profile(test if given is None else seed(int(given))(test))

    return decorate


ODD_TEXTS = st.sampled_from(
    [
        "", " ", "a\nb", "\x1b[31mred", "x" * 300, "y" * 20_000, "\ud800", "\udcff", "null \0", "../..", "~nouser", "/",
        "[/x]", "(?:(\\w|.)+)+[!?]", "(", "None", "nan", "1e999", "-1", "9" * 5000, "é\u202e", "[" * 100_000,
        '{"a":' * 3000,
        "/dev/zero", "/dev/null/x", "C:\\x", "$x$", "<script>", "hf:", "hf:no such/data", "a:b", "q_proj", "float16",
    ]
)  # fmt: skip
TEXTS = st.text(max_size=12) | ODD_TEXTS
NUMBERS = (
    st.integers(-3, 70)
    | st.sampled_from([10**30, -(10**30), 2**31, 2**63 - 1, 2**63, 2**64, 1e200, 1e308, 1e-320, 0.5, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Values that JSON has."""
PYTHON = JSON | st.sampled_from(
    [float("nan"), float("inf"), 10**5000, b"bytes", object(), print, (), {1, 2}, 1j, Path("x"), range(3), int, ...]
)
"""Values that a caller may pass."""


@contextmanager
def within(seconds: int = SECONDS) -> Iterator[None]:
    """Fail a case that takes longer; an expression that backtracks for ever is interrupted as well."""

    def late(*_: Any) -> None:
        raise AssertionError(f"a case took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_sentence(text: str) -> None:
    """One line, of bounded length, that no terminal obeys."""
    assert text, "no words"
    assert text.isprintable(), repr(text)
    command = any(word in text for word in ("python -c", "save_pretrained("))
    assert len(text) <= (LONGEST_WITH_A_COMMAND if command else LONGEST), f"{len(text)} characters: {text}"


def run_case(
    fuzzer: str,
    case: Callable[[], object],
    documented: tuple[type[Exception], ...] = (),
    untouched: Path | None = None,
) -> object:
    """Run a case and count its outcome; returns what it returned, None if it was refused.

    documented: exceptions beside InputError that the case may end in. untouched: a folder in which a case that is
    refused writes nothing.
    """
    before = None if untouched is None else listing(untouched)
    try:
        with within():
            found, refused = case(), ""
    except InputError as error:
        found, refused = None, str(error)
    except documented:
        COUNTS[fuzzer, "one sentence"] += 1
        return None
    except BaseException:
        COUNTS[fuzzer, "other"] += 1
        raise
    if not refused:
        COUNTS[fuzzer, "works"] += 1
        return found
    try:
        check_sentence(refused)
        assert untouched is None or listing(untouched) == before, f"something was written: {refused}"
    except AssertionError:
        COUNTS[fuzzer, "other"] += 1
        raise
    COUNTS[fuzzer, "one sentence"] += 1
    return None


def listing(folder: Path) -> list[str]:
    """Every name below a folder."""
    return sorted(str(path) for path in folder.rglob("*"))


Place = tuple[Any, ...]


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """Where a value of JSON has parts, by keys and numbers; itself is ()."""
    yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield from places(inner, (*above, key))


def changed(value: Any, place: Place, new: Any) -> Any:
    """A copy with another value in one place; `...` removes it."""
    if not place:
        return None if new is ... else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and new is ...:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut, with a piece changed, doubled, or of something else."""
    how = draw(st.sampled_from(["cut", "piece", "double", "other", "empty", "nulls"]))
    at = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:at]
    if how == "piece":
        piece = draw(st.binary(min_size=1, max_size=9))
        return content[:at] + piece + content[at + len(piece) :]
    if how == "double":
        return content[:at] + content
    if how == "nulls":
        return content[:at] + bytes(64) + content[at:]
    return b"" if how == "empty" else draw(st.binary(max_size=200))
