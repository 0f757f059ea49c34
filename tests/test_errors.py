import pickle

import pytest

from modelswarms_fast.errors import LONGEST, QUOTED, EngineError, InputError, quoted, short


def test_what_is_quoted_is_one_short_line_that_no_terminal_obeys():
    assert short("a\n\n  b\tc \r\n") == "a b c"
    assert short("\x1b[31mred\x1b[0m \x1b]0;title\x07end") == "red end"
    assert short("bell\x07, half \udcff, override \u202e") == r"bell\x07, half \udcff, override \u202e"
    assert short("x" * 10**7) == "x" * (QUOTED - 1) + "…"
    assert short(ValueError("two\nlines")) == "two lines"
    assert short([1, "a"]) == "[1, 'a']"


def test_a_text_is_quoted_as_python_writes_it():
    assert quoted("it's") == '"it\'s"'
    assert quoted(0.5) == "0.5"
    assert quoted(None) == "None"
    assert len(quoted("é\n" * 10**6)) <= QUOTED + 3
    assert quoted("x" * 101) == f"'{'x' * 100}'…"


@pytest.mark.parametrize("kind", [short, quoted, InputError, EngineError])
def test_no_name_or_password_of_an_address_is_quoted(kind):
    shown = str(kind("cannot reach http://me:sesame@host:80/v1 or https://sesame@other"))
    assert "cannot reach http://…@host:80/v1 or https://…@other" in shown
    assert "sesame" not in str(kind("x" * 90 + "http://me:" + "sesame" * 50 + "@host"))
    assert "http://host/owner/name@main" in str(kind("http://host/owner/name@main"))


def test_a_value_that_python_cannot_print_is_named_by_its_type():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert quoted(nested) == "what cannot be shown, of type list"
    assert quoted(10**5000) == "what cannot be shown, of type int"


@pytest.mark.parametrize("kind", [InputError, EngineError])
def test_a_sentence_is_one_line_and_keeps_its_remedy(kind):
    long = kind(f"the folder {'x' * 10**6}\nis no folder; give another one.")
    assert len(str(long)) <= LONGEST
    assert str(long).startswith("the folder xxx")
    assert str(long).endswith(" is no folder; give another one.")
    assert str(kind("  spaces  in names  stay")) == "spaces  in names  stay"
    assert str(pickle.loads(pickle.dumps(long))) == str(long)
