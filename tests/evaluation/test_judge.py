"""The judge: question and parsing by hand, and all that an endpoint can do wrong, by one that does it."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from helpers_scorers import CHAT, Endpoint, answers, completion, endpoint, make_classifier, write_prompts

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Utility, judge, load_utility

__all__ = ["endpoint"]  # a fixture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "human.json", "Why is it blue?", "Who is it?")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def load(data: Path, endpoint: Endpoint, **options: str) -> Utility:
    given = {"model": "m", "endpoint": endpoint.url, "cache": str(data.parent / "cache"), "retries": "0"}
    return load_utility("judge", data, options=given | options)


# What is asked, and what is read


def test_question_is_in_the_published_words() -> None:
    assert judge.question("Why?", "So.") == (
        "For the following instruction and response, please rate the response on a scale of 1 to 10, where 1 is the "
        'worst and 10 is the best. Please respond with "Rating: ?/10" first and then provide your reason.\n\n'
        "Instruction: Why?\n\nResponse: So."
    )


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 7/10\nBecause", 7),
        ("Rating: 10/10", 10),
        ("Rating: 1", 1),
        ("**Rating:** 8.5 / 10", 8.5),
        ("Well. rating: 3/10, and Rating: 9/10", 3),
        ("Rating: 4. It is short", 4),
        ("Rating: ?/10", None),
        ("Rating: ?/10 I would say Rating: 6/10", 6),
        ("Rating: 0/10", None),
        ("Rating: 11/10", None),
        ("Rating: 80/100", None),
        ("Rating: 8/100", None),
        ("Rating: 8.5/100", None),
        ("Rating: 9/5", None),
        ("Rating: good", None),
        ("7/10", None),
        ("", None),
    ],
)
def test_parse(reply: str, rating: float | None) -> None:
    assert judge.parse(reply) == rating


def test_what_is_sent(data: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    utility = load(data, endpoint, key_env="MY_KEY")
    assert utility.prompts["dev"] == ["Why is it blue?", "Who is it?"]
    assert (utility.max_tokens, utility.score_range, utility.batch) == (512, (1, 10), 8)
    assert utility.score("dev", [1], answers(" Nobody.\n")) == [7]
    checked, asked = endpoint.seen
    assert checked["messages"][0]["content"] == judge.question("What is 2 + 2?", "4")
    assert asked["messages"] == [{"role": "user", "content": judge.question("Who is it?", "Nobody.")}]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("m", 0, 20)
    assert all(headers["authorization"] == "Bearer sesame" for headers in endpoint.headers)


def test_prompts_in_a_chat_template(data: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "chat", chat=CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}")
    utility = load(data, endpoint, chat=str(folder))
    assert utility.prompts["dev"][0] == "<user>Why is it blue?<assistant>"
    utility.score("dev", [0], answers("Sky."))
    assert "Instruction: Why is it blue?\n" in endpoint.seen[-1]["messages"][0]["content"]  # the judge sees none of it
    with pytest.raises(InputError, match="has no chat template"):
        load(data, endpoint, chat=str(make_classifier(tmp_path / "plain")))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=f"{folder} cannot be loaded by transformers"):
        load(data, endpoint, chat=str(folder))


def test_what_cannot_be_read_counts_as_the_lowest_and_is_told(data: Path, endpoint: Endpoint) -> None:
    utility = load(data, endpoint, price_in="2", price_out="10", concurrency="1")
    endpoint.script = [(200, completion("Rating: 9/10"), 0.0), (200, completion("Nice!"), 0.0)]
    endpoint.script += [(200, completion(None), 0.0)]
    assert utility.score("dev", [0, 1, 1], answers("a", "b", "c")) == [9, 1, 1]
    assert utility.report() == {
        "ratings": 3,
        "unparsable": 2,
        "requests": 4,
        "cached": 0,
        "tokens_in": 280,
        "tokens_out": 36,
        "cost": pytest.approx((280 * 2 + 36 * 10) / 1e6),
    }
    assert load(data, endpoint).report()["cost"] is None


def test_usage_may_be_missing(data: Path, endpoint: Endpoint) -> None:
    endpoint.usual = (200, {**completion("Rating: 5/10"), "usage": None}, 0.0)
    utility = load(data, endpoint)
    assert utility.score("dev", [0], answers("a")) == [5]
    assert utility.report()["tokens_in"] == 0


def test_ratings_run_side_by_side(data: Path, endpoint: Endpoint) -> None:
    utility = load(data, endpoint, concurrency="4")
    endpoint.usual = (200, completion("Rating: 2/10"), 0.2)
    assert utility.score("dev", [0] * 4, answers("a", "b", "c", "d")) == [2] * 4
    assert endpoint.most_under_way > 1


# The cache


def test_what_was_rated_is_not_asked_again(data: Path, endpoint: Endpoint) -> None:
    utility = load(data, endpoint)
    assert utility.score("dev", [0, 0, 0], answers("a", "a", "b")) == [7, 7, 7]
    assert len(endpoint.seen) == 1 + 2
    endpoint.usual = (200, completion("Rating: 3/10"), 0.0)
    again = load(data, endpoint)  # as in another run
    assert again.score("dev", [0, 0, 1], answers("a", "c", "a")) == [7, 3, 3]  # of another response or prompt: new
    assert again.report()["cached"] == 1
    other = load(data, endpoint, model="other")
    assert other.score("dev", [0], answers("a")) == [3]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"model": "m"}', '{"model": "m", "question": "?", "reply": 7}']
)
def test_a_damaged_entry_is_asked_again(data: Path, endpoint: Endpoint, content: str) -> None:
    utility = load(data, endpoint)
    utility.score("dev", [0], answers("a"))
    file = next(path for path in (data.parent / "cache").iterdir() if "Response: a" in path.read_text())
    whole = file.read_text()
    file.write_text(content)
    endpoint.usual = (200, completion("Rating: 4/10"), 0.0)
    assert utility.score("dev", [0], answers("a")) == [4]
    assert json.loads(file.read_text()) == json.loads(whole) | {"reply": "Rating: 4/10"}
    assert all(path.suffix == ".json" for path in file.parent.iterdir())  # nothing half written is left


def test_the_cache_is_the_owners_alone(data: Path, endpoint: Endpoint) -> None:
    cache = data.parent / "new" / "cache"
    load(data, endpoint, cache=str(cache)).score("dev", [0], answers("a"))
    assert [path.stat().st_mode & 0o077 for path in (cache.parent, cache, *cache.iterdir())] == [0] * 4


def test_an_entry_of_another_question_is_not_taken(data: Path, endpoint: Endpoint) -> None:
    utility = load(data, endpoint)
    utility.score("dev", [0], answers("a"))
    file = next(path for path in (data.parent / "cache").iterdir() if "Response: a" in path.read_text())
    file.write_text(json.dumps({"model": "m", "question": "What?", "reply": "Rating: 1/10"}))
    assert utility.score("dev", [0], answers("a")) == [7]


def test_a_cache_that_cannot_be_written(data: Path, endpoint: Endpoint) -> None:
    (data.parent / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write to the judge's cache .*; give --option cache=FOLDER"):
        load(data, endpoint)


# What an endpoint must not get, or not do


@pytest.mark.parametrize(
    "url",
    [
        "http://me:sesame@127.0.0.1/v1", "https://sesame@host/v1", "http://host/v1?key=sesame", "http://host/v1#sesame",
        "me:sesame@host/v1", "http:\\\\me:sesame@host", "http://host@sesame",
    ],
)  # fmt: skip
def test_an_endpoint_with_a_password_is_refused_without_showing_it(data: Path, url: str) -> None:
    with pytest.raises(InputError, match="holds a name, a password or a query, which would be recorded") as caught:
        load_utility("judge", data, options={"model": "m", "endpoint": url})
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["host/v1", "ftp://host", "http:///v1", "file:///etc/passwd"])
def test_an_endpoint_is_an_address_of_the_web(data: Path, url: str) -> None:
    with pytest.raises(InputError, match="give an address such as"):
        load_utility("judge", data, options={"model": "m", "endpoint": url})


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_key_that_is_sent_back_is_neither_shown_nor_kept(
    data: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MY_KEY", "sesame-open")
    utility = load(data, endpoint, key_env="MY_KEY")
    endpoint.usual = (200, completion("Rating: 6/10, Bearer sesame-open"), 0.0)
    assert utility.score("dev", [0], answers("a")) == [6]
    kept = [path.read_text() for path in (data.parent / "cache").iterdir()]
    assert len(kept) == 2
    assert not any("sesame" in text for text in kept)
    said = "\x1b]0;title\x07no \x1b[31mse\x1b[0msame-open\r\nand\u202e " + "x" * 100_000
    endpoint.usual = (status, {"error": {"message": said}}, 0.0)
    with pytest.raises(InputError) as caught:
        utility.score("dev", [1], answers("b"))
    assert "sesame" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


class Talker:
    """A server on loopback that sends these parts, the last one again and again, until it is closed."""

    def __init__(self, *parts: bytes, wait: float = 0.0) -> None:
        self.sent, self._open = 0, True
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

        def talk() -> None:
            while self._open:
                with suppress(OSError):
                    peer, _ = self._socket.accept()
                    with peer:
                        peer.recv(100_000)
                        for part in chain(parts, repeat(parts[-1])):
                            if not self._open:
                                break
                            peer.sendall(part)
                            self.sent += len(part)
                            time.sleep(wait)

        self._thread = threading.Thread(target=talk, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._open = False
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PACKED = gzip.compress(b'{"choices": [' + b" " * 50_000_000)


@pytest.mark.parametrize(
    ("parts", "wait", "said"),
    [
        ((HEAD + b"\r\n", b" " * 100_000), 0.0, "answered more than 1,048,576 bytes, or compressed"),
        ((HEAD.replace(b"200 OK", b"400 No") + b"\r\n", b" " * 100_000), 0.0, "answered more than 1,048,576 bytes"),
        ((HEAD + b"Content-Encoding: gzip\r\n\r\n", PACKED), 0.0, "or compressed"),
        ((HEAD + b"\r\n", b" "), 0.05, "took more than 0.3 s"),
        ((HEAD, b"X-More: 1\r\n"), 0.05, "took more than 1.3 s in all"),
    ],
    ids=["endless", "endless error", "packed", "slow", "slow head"],
)
def test_an_answer_without_end_is_cut(
    data: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...], wait: float, said: str
) -> None:
    monkeypatch.setattr(judge, "LONGEST_PAUSE", 1.0)
    talker = Talker(*parts, wait=wait)
    try:
        with pytest.raises(InputError, match=said):
            load_utility(
                "judge", data, options={"model": "m", "endpoint": talker.url, "retries": "0", "timeout": "0.3"}
            )
    finally:
        talker.close()
    assert talker.sent < 30_000_000  # what the client has taken, and what lay in buffers


# Failures


def test_what_may_pass_is_asked_again(data: Path, endpoint: Endpoint) -> None:
    endpoint.script = [(500, {}, 0.0), (429, {}, 0.0)]
    utility = load(data, endpoint, retries="2")
    assert utility.score("dev", [0], answers("a")) == [7]
    assert len(endpoint.seen) == 4


@pytest.mark.parametrize(
    ("usual", "said"),
    [
        (
            (401, {"error": {"message": "Incorrect key sk-12"}}, 0.0),
            "refuses the key; put a valid one into .* OPENAI_API_KEY",
        ),
        ((403, {}, 0.0), "refuses the key"),
        (
            (404, {"error": {"message": "no such model"}}, 0.0),
            "does not know the model m .*no such model.*; correct model",
        ),
        ((400, {"error": {"message": "max_tokens\nis out"}}, 0.0), "failed: .*is out"),
        ((500, {}, 0.0), "failed: "),
        ((200, "<html>no</html>", 0.0), "answered what is no chat completion; give the endpoint"),
        ((200, {"choices": []}, 0.0), "no chat completion"),
        ((200, [1], 0.0), "no chat completion"),
        ((200, {"object": "list"}, 0.0), "no chat completion"),
        ((200, completion("Rating: 7/10"), 1.0), "took more than 0.3 s; raise --option timeout"),
    ],
)
def test_an_endpoint_that_fails_is_one_sentence(data: Path, endpoint: Endpoint, usual: Any, said: str) -> None:
    endpoint.usual = usual
    with pytest.raises(InputError, match=said) as caught:
        load(data, endpoint, timeout="0.3" if usual[2] else "30")
    assert "\n" not in str(caught.value)
    assert "sk-12" not in str(caught.value)


def test_a_dead_endpoint(data: Path, endpoint: Endpoint) -> None:
    endpoint.close()
    with pytest.raises(InputError, match="cannot be reached; start it or correct --option endpoint"):
        load(data, endpoint)


def test_a_failure_in_the_middle_keeps_what_was_rated(data: Path, endpoint: Endpoint) -> None:
    utility = load(data, endpoint, concurrency="1")
    endpoint.script = [(200, completion("Rating: 8/10"), 0.0), (500, {}, 0.0)]
    with pytest.raises(InputError, match="failed"):
        judge_of(utility)([0, 1, 1, 1], "a", "b", "c", "d")
    assert len(endpoint.seen) <= 4  # the check, one that worked, one that failed, at most one that had begun
    assert utility.score("dev", [0], answers("a")) == [8]  # from the cache


def judge_of(utility: Utility) -> Any:
    """Scores several examples at once, more than its batch."""
    return lambda numbers, *texts: utility.score_examples(
        [utility.examples["dev"][number] for number in numbers], answers(*texts)
    )


def test_without_endpoint_a_key_is_needed(data: Path) -> None:
    with pytest.raises(InputError, match="no key in the environment variable OPENAI_API_KEY"):
        load_utility("judge", data, options={"model": "m"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": ""}, "needs --option model="),
        ({"colour": "red"}, "no option colour"),
        ({"concurrency": "0"}, "give a number from 1 on"),
        ({"retries": "-1"}, "give a number from 0 on"),
        ({"price_in": "-3"}, "give a number from 0 on"),
        ({"price_out": "nan"}, "give a number from 0 on"),
        ({"timeout": "0"}, "give a number from 0.001 on"),
    ],
)
def test_refusals(data: Path, endpoint: Endpoint, options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(data, endpoint, **options)
    assert not endpoint.seen
