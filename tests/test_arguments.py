import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import modelswarms_fast
from modelswarms_fast import EngineConfig, InputError, Swarm, SwarmConfig
from modelswarms_fast.config import TaskConfig
from modelswarms_fast.errors.arguments import check_path, check_type
from modelswarms_fast.errors.files import read_bytes, read_text


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int), (np.int64(3), int), (3, float), (np.float32(0.5), float), (True, bool), (None, int | None),
        ("a", str), ("slots", Literal["slots", "merged"]), (Path("a"), str | Path),
        (["a", Path("b")], Sequence[str | Path]),
        (("a",), str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None), ({"a": 1}, dict[str, Any]),
        ({"a": (0, 1.5)}, Mapping[str, tuple[float, float]]), ({"a": [0, 1]}, Mapping[str, tuple[float, float]]),
        (print, Callable[[str], None]), (object(), Any), ({"a": object()}, Mapping[str, object]),
    ],
)  # fmt: skip
def test_what_an_annotation_says_is_taken(value, hint):
    check_type("setting", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (0.5, int, "setting is 0.5; give a whole number."),
        (True, int, "setting is True; give a whole number."),
        ("1", float | None, "setting is '1'; give a number or None."),
        (1, bool, "setting is 1; give True or False."),
        (b"a", str, "setting is b'a'; give a text."),
        ("up", Literal["a", "b"], "setting is 'up'; choose one of 'a', 'b'."),
        (["a"], Literal["a", "b"], "setting is ['a']; choose one of 'a', 'b'."),
        ("ab", Sequence[str], "setting is 'ab'; give a list, of which each is a text."),
        ([1], Sequence[str], "setting is [1]; give a list, of which each is a text."),
        ({"a": 1}, Mapping[str, str], "give a mapping, of which each key is a text and each value a text."),
        ({"a": (1,)}, Mapping[str, tuple[float, float]], "each value a pair."),
        (3, Callable[[], None], "setting is 3; give a function."),
    ],
)
def test_another_type_is_one_sentence_that_names_the_setting(value, hint, sentence):
    with pytest.raises(InputError) as caught:
        check_type("setting", value, hint)
    assert str(caught.value).endswith(sentence)


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 200] * 30), "half \ud800", "null \0"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(InputError, match=r"^out is '"):
        check_path("out", ["good", Path(name)])
    check_path("out", os.fsdecode(b"not UTF-8 \xff"))


GIVEN = {"base": "base", "task": "exact_match", "data": "data.json", "out": "run"}
NEEDED = {"evaluate": ("base", "task", "data"), "report": ()}


@pytest.mark.parametrize(
    ("name", "arguments", "given", "sentence"),
    [
        ("search", ["experts"], {"seed": 0.5}, "seed is 0.5; give a whole number"),
        ("search", ["experts"], {"overwrite": 1}, "overwrite is 1; give True or False"),
        ("search", [3], {}, "experts is 3; give a text or a path or a list"),
        ("search", ["experts"], {"base": None}, "base is None; give a text"),
        ("search", ["experts"], {"out": "x" * 300}, "longer than a name may be"),
        ("search", ["experts"], {"trace": "half \ud800"}, "half a character"),
        ("search", ["experts"], {"iterations": 10**20}, r"iterations is 1.*; give a number from 0 to 1,000,000"),
        ("search", ["experts"], {"step_length": 10**5000}, "step_length is what cannot be shown"),
        ("search", ["experts"], {"options": {"a": 1}}, "options is {'a': 1}; give a mapping"),
        ("search", ["experts"], {"spill": 3}, "spill is 3; give a text or None"),
        ("sweep", ["experts"], {"ranges": {"inertia": 0.1}}, "ranges is {'inertia': 0.1}; give a mapping"),
        ("sweep", ["experts"], {"minutes": float("nan")}, "minutes is nan; give a number from 0"),
        ("sweep", ["experts"], {"searches": 10**20}, r"searches is 1.*; give a number from 1"),
        ("compare", ["experts"], {"budget": "8"}, "budget is '8'; give a whole number"),
        ("compare", ["experts"], {"budget": 8, "methods": "greedy"}, "methods is 'greedy'; give a list"),
        ("study", ["seeds", "experts"], {"seeds": 0}, "seeds is 0; give a number from 1"),
        ("token_swarm", ["experts"], {"max_model_len": None}, "max_model_len is None; give a whole number"),
        ("evaluate", ["model"], {"dry_run": "yes"}, "dry_run is 'yes'; give True or False"),
        ("report", [None], {}, "run is None; give a text or a path"),
    ],
)
def test_each_public_function_refuses_wrong_types_and_ranges_before_it_reads_or_writes(
    tmp_path, monkeypatch, name, arguments, given, sentence
):
    monkeypatch.chdir(tmp_path)
    keywords = {key: value for key, value in GIVEN.items() if key in NEEDED.get(name, GIVEN)} | given
    with pytest.raises(InputError, match=sentence):
        getattr(modelswarms_fast, name)(*arguments, **keywords)
    assert not list(tmp_path.iterdir())


def test_the_settings_and_the_swarm_check_their_own_types():
    with pytest.raises(InputError, match=r"n_experts is 2\.0; give a whole number"):
        Swarm(SwarmConfig(particles=2), 2.0)
    with pytest.raises(InputError, match=r"config is .*; give a SwarmConfig"):
        Swarm({"particles": 2}, 2)
    with pytest.raises(InputError, match=r"engine_options is 'a=b'; give a mapping"):
        EngineConfig(engine_options="a=b")
    with pytest.raises(InputError, match="temperature is '1'; give a number or None"):
        TaskConfig(temperature="1")


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_text("ä")
    os.mkfifo(pipe)
    assert read_text(file) == "ä"
    for path, sentence in (
        (pipe, "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "missing", "No such file"),
        ("null \0", "no file can have this name"),
    ):
        with pytest.raises(OSError, match=sentence):
            read_bytes(path)
    with pytest.raises(OSError, match="larger than 0 MiB"):
        read_bytes(file, largest=1)
