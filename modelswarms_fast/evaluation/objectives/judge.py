"""A language model behind an OpenAI-compatible endpoint rates each response from 1 to 10: human interests, objective 4
of the Model Swarms paper (Feng et al., arXiv 2410.11163).

Question, scale, temperature 0, 20 tokens for the rating and 512 for a response are those of the published evaluation.
A rating that cannot be read counts as the lowest there, and here: were it the middle or left out, a response that
confuses the judge could beat one that it dislikes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, one_line, quoted, short
from modelswarms_fast.evaluation.bounded import LARGEST_ANSWER, TooMuch, TooSlow, bound_answers, within
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.callables import prompt
from modelswarms_fast.evaluation.objectives.data import Wanted, dataset_of, read_examples
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility
from modelswarms_fast.weights.base_model import loading, resolve_base
from modelswarms_fast.weights.packaged import cache_folder, make_private

OPTIONS = (
    "model", "endpoint", "key_env", "cache", "concurrency", "retries", "timeout", "price_in", "price_out", "chat"
)  # fmt: skip
MAX_TOKENS = 512
RATING_TOKENS = 20
LOWEST, HIGHEST = 1.0, 10.0
MOST_RETRIES, LONGEST_TIMEOUT = 100, 86_400.0  # a judge that is not there is not waited for longer
LONGEST_PAUSE = 60.0  # before the client asks again
LARGEST_ERROR = 10_000  # characters of an error that are looked through for the key

# A number right after "Rating:", whole or not, alone or out of ten. `(?>` does not give back what it took, so that
# "80" is no 8.
_RATING = re.compile(r"rating:[\s*_]*(?>(\d+(?:\.\d+)?))\s*(?:/\s*10(?!\d))?(?!\s*/)", re.IGNORECASE)

Pair = tuple[str, str]  # prompt, response


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file and a judge that has answered once; options: see OPTIONS. Raises InputError."""
    wanted.check_options(*OPTIONS)
    examples = read_examples(data, wanted, {"prompt": (str,)}, instead="question")
    prices = None
    if "price_in" in wanted.options or "price_out" in wanted.options:
        prices = wanted.number("price_in", 0, least=0), wanted.number("price_out", 0, least=0)
    concurrency, limit = wanted.whole("concurrency", 8), wanted.max_tokens or MAX_TOKENS
    if "endpoint" in wanted.options:
        check_endpoint(wanted.text("endpoint"))
    judge = Judge(
        wanted.text("model"),
        endpoint=wanted.options.get("endpoint"),
        key_env=wanted.text("key_env", "OPENAI_API_KEY"),
        cache=Path(wanted.text("cache", str(cache_folder() / "judge"))).expanduser(),
        concurrency=concurrency,
        retries=wanted.whole("retries", 5, least=0, most=MOST_RETRIES),
        timeout=wanted.number("timeout", 60, least=0.001, most=LONGEST_TIMEOUT),
        prices=prices,
    )
    form = chat_form(wanted.options["chat"]) if "chat" in wanted.options else str
    judge.check()

    def score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
        pairs = [(prompt(one), given[0].text.strip()) for one, given in zip(examples, answers, strict=True)]
        return judge.ratings(pairs)

    return Utility(
        wanted.task,
        dataset_of(data),
        examples,
        {split: [(Ask(form(prompt(one)), limit),) for one in some] for split, some in examples.items()},
        score_examples,
        batch=concurrency,
        score_range=(LOWEST, HIGHEST),
        report=judge.report,
    )


def check_endpoint(endpoint: str) -> None:
    """Refuse what is no plain address: a name, a password or a query would be recorded. Raises InputError."""
    if any(mark in endpoint for mark in "@?#"):
        raise InputError(
            "the judge's endpoint holds a name, a password or a query, which would be recorded; give the address "
            "alone, and the key in the environment variable that --option key_env names"
        )
    if not re.match(r"https?://[^/]", endpoint, re.IGNORECASE):
        raise InputError(
            f"the judge's endpoint is {quoted(endpoint)}; give an address such as http://127.0.0.1:8000/v1"
        )


def question(prompt: str, response: str) -> str:
    """What the judge is asked, in the published words, without the stray line continuation that is sent with them."""
    return (
        "For the following instruction and response, please rate the response on a scale of 1 to 10, where 1 is the "
        'worst and 10 is the best. Please respond with "Rating: ?/10" first and then provide your reason.\n\n'
        f"Instruction: {prompt}\n\nResponse: {response}"
    )


def parse(reply: str) -> float | None:
    """The rating in a reply, from 1 to 10; None if there is none."""
    found = _RATING.search(reply)
    rating = float(found[1]) if found else 0.0
    return rating if LOWEST <= rating <= HIGHEST else None


class Judge:
    """Ratings of prompts and responses. What was rated once is read from the cache folder from then on.

    The key of a cached reply is the model and the question; the endpoint is not part of it. The official client
    retries what may pass (no connection, 408, 409, 429, 500 and above) with growing pauses.
    """

    def __init__(
        self,
        model: str,
        *,
        endpoint: str | None = None,
        key_env: str = "OPENAI_API_KEY",
        cache: Path,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
        prices: tuple[float, float] | None = None,
    ) -> None:
        """`prices`: of a million tokens in and out. Raises InputError without the client or a key."""
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError as error:
            raise InputError("judge needs the package openai; install modelswarms-fast[objectives]") from error
        key = os.environ.get(key_env)
        if not key and endpoint is None:
            raise InputError(f"judge finds no key in the environment variable {key_env}; set it, or give key_env")
        # A server of one's own often wants no key, but the client insists on one.
        self._client = OpenAI(
            api_key=key or "none",
            base_url=endpoint,
            max_retries=retries,
            timeout=timeout,
            default_headers={"Accept-Encoding": "identity"},
            http_client=DefaultHttpxClient(event_hooks={"response": [bound_answers(timeout)]}),
        )
        self._key = key or ""
        self._longest = (retries + 1) * (timeout + LONGEST_PAUSE)
        self._model, self._key_env, self._cache = model, key_env, cache
        self._concurrency, self._prices = concurrency, prices
        self._spent = dict.fromkeys(("ratings", "unparsable", "requests", "cached", "tokens_in", "tokens_out"), 0)

    def check(self) -> None:
        """Have one short response rated, past the cache: endpoint, key and model work. Raises InputError."""
        self._count(self._ask(question("What is 2 + 2?", "4")))

    def ratings(self, pairs: Sequence[Pair]) -> list[float]:
        """Ratings from 1 to 10; the lowest where the judge's reply has none. Raises InputError."""
        questions = [question(*pair) for pair in pairs]
        replies = {asked: self._read(asked) for asked in questions}
        self._spent["cached"] += sum(reply is not None for reply in replies.values())
        with ThreadPoolExecutor(self._concurrency) as pool:
            new = {asked: pool.submit(self._ask, asked) for asked, reply in replies.items() if reply is None}
            try:
                for asked, future in new.items():
                    replies[asked] = self._count(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # those that follow would fail as slowly
                raise
        ratings = [parse(replies[asked] or "") for asked in questions]
        self._spent["ratings"] += len(ratings)
        self._spent["unparsable"] += ratings.count(None)
        return [LOWEST if rating is None else rating for rating in ratings]

    def report(self) -> dict[str, Any]:
        """Ratings given and unparsable ones among them, requests, tokens, and their cost where prices are known."""
        spent, cost = self._spent, None
        if self._prices is not None:
            cost = (spent["tokens_in"] * self._prices[0] + spent["tokens_out"] * self._prices[1]) / 1e6
        return {**spent, "cost": cost}

    def _count(self, asked: tuple[str, int, int]) -> str:
        reply, tokens_in, tokens_out = asked
        for name, number in (("requests", 1), ("tokens_in", tokens_in), ("tokens_out", tokens_out)):
            self._spent[name] += number
        return reply

    def _ask(self, asked: str) -> tuple[str, int, int]:
        """The reply, which is then in the cache, and its tokens in and out."""
        import openai

        def create() -> Any:
            return self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": asked}],
                temperature=0,
                max_tokens=RATING_TOKENS,
            )

        try:
            completion = within(self._longest, create)
            reply, usage = self._without_key(completion.choices[0].message.content or ""), completion.usage
        except TimeoutError as error:
            raise InputError(
                f"the judge at {self._client.base_url} took more than {self._longest:g} s in all; see what keeps it"
            ) from error
        except (openai.OpenAIError, TooMuch, TooSlow) as error:
            raise self._failed(error) from error
        except (ValueError, AttributeError, TypeError, IndexError) as error:  # neither JSON nor a completion
            raise InputError(
                f"the judge at {self._client.base_url} answered what is no chat completion; give the endpoint of an "
                "OpenAI-compatible server, which often ends in /v1"
            ) from error
        self._write(asked, reply)
        return reply, usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0

    def _failed(self, error: Exception) -> InputError:
        import openai

        where = f"the judge at {self._client.base_url}"
        cause = error if isinstance(error, TooMuch | TooSlow) else error.__cause__
        if isinstance(cause, TooMuch):
            return InputError(
                f"{where} answered more than {LARGEST_ANSWER:,} bytes, or compressed; give the endpoint of an "
                "OpenAI-compatible server"
            )
        if isinstance(error, openai.APITimeoutError) or isinstance(cause, TooSlow):
            return InputError(f"{where} took more than {self._client.timeout:g} s; raise --option timeout")
        if isinstance(error, openai.APIConnectionError):
            return InputError(f"{where} cannot be reached; start it or correct --option endpoint")
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return InputError(f"{where} refuses the key; put a valid one into the environment variable {self._key_env}")
        said = short(self._without_key(one_line(str(getattr(error, "message", error))[:LARGEST_ERROR])))
        if isinstance(error, openai.NotFoundError):
            return InputError(f"{where} does not know the model {self._model} ({said}); correct model or endpoint")
        return InputError(f"{where} failed: {said}")

    def _without_key(self, text: str) -> str:
        """What a server says, which may repeat the key that it was sent."""
        return text.replace(self._key, "…") if self._key else text

    def _file(self, asked: str) -> Path:
        return self._cache / f"{hashlib.sha256(json.dumps([self._model, asked]).encode()).hexdigest()}.json"

    def _read(self, asked: str) -> str | None:
        """A reply from the cache; None if it has none, or one that cannot be read."""
        try:
            entry = json.loads(self._file(asked).read_text(encoding="utf-8"))
            kept = entry["model"] == self._model and entry["question"] == asked
            return entry["reply"] if kept and isinstance(entry["reply"], str) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, asked: str, reply: str) -> None:
        target = self._file(asked)
        entry = json.dumps({"model": self._model, "question": asked, "reply": reply})
        try:
            make_private(self._cache)
            with tempfile.NamedTemporaryFile("w", dir=self._cache, encoding="utf-8", delete=False) as file:
                file.write(entry)
            os.replace(file.name, target)
        except OSError as error:
            raise InputError(
                f"cannot write to the judge's cache {self._cache} ({error.strerror}); give --option cache=FOLDER"
            ) from error


def chat_form(name: str) -> Callable[[str], str]:
    """What turns a prompt into a user's turn in the chat template of a tokenizer's folder or hub id.

    Raises InputError where there is no such tokenizer or it has no template.
    """
    from transformers import AutoTokenizer

    folder = resolve_base(name)
    with loading(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {name} has no chat template; leave --option chat out")

    def form(prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        begin, ids = tokenizer.bos_token_id, tokenizer(text)["input_ids"]
        doubled = begin is not None and ids[:2] == [begin, begin]  # the tokenizer adds what the template has
        return text.removeprefix(tokenizer.bos_token) if doubled else text

    return form
