"""Multiple choice: the prompt lists the choices, the answer is parsed out of generated tokens or is the likeliest.

Prompt and parsing are those of the Model Swarms paper's published evaluation (Feng et al., arXiv 2410.11163),
character for character, so that utilities can be compared with published numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.choices import read_choices
from modelswarms_fast.evaluation.objectives.data import Wanted, dataset_of, right_answers
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

MAX_TOKENS = 10
NOTHING_FOUND = "Z"

_INSTRUCTIONS = {
    "hellaswag": "Please choose an option that best completes the sentence.\n",
    # Its questions carry their own instruction, and its in-context example shows the form of an answer.
    "knowledge_crosswords": "",
}
_DEFAULT_INSTRUCTION = "Please choose an option that best answers the question.\n"


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file. Raises InputError."""
    examples, dataset = read_choices(data, wanted), dataset_of(data)
    icl_prompt = read_icl_prompt(data, dataset)
    limit = wanted.max_tokens or MAX_TOKENS
    if wanted.scoring == "loglikelihood":
        return _load_likelihoods(wanted, dataset, examples, icl_prompt)
    wanted.check_options()
    return Utility(
        wanted.task,
        dataset,
        examples,
        {split: [(Ask(prompt(one, dataset, icl_prompt), limit),) for one in some] for split, some in examples.items()},
        _score_examples,
        score_range=(0.0, 1.0),
        choice=_parsed,
    )


def _load_likelihoods(
    wanted: Wanted, dataset: str, examples: dict[str, list[dict[str, Any]]], icl_prompt: str
) -> Utility:
    """The same prompt, after which each choice is looked at: the likeliest is the answer.

    Options: `answer`, what stands for a choice after "The answer is": its `key` (default: what the parsing looks for,
    too), or its `text`; `normalise`, `none` (default; lm-eval's acc) or `characters`, which divides the log-probability
    by the length of what stands for the choice (lm-eval's acc_norm).
    """
    wanted.check_options("answer", "normalise")
    if wanted.max_tokens is not None:
        raise InputError("max_tokens is given, but scoring loglikelihood generates nothing; leave it out")
    by_text = wanted.choice("answer", "key", "text") == "text"
    by_length = wanted.choice("normalise", "none", "characters") == "characters"

    def said(example: dict[str, Any]) -> list[str]:
        return [str(text if by_text else key) for key, text in example["choices"].items()]

    def asks(example: dict[str, Any]) -> tuple[Ask, ...]:
        start = prompt(example, dataset, icl_prompt)
        return tuple(Ask(start, 1, f" {words}") for words in said(example))

    def likeliest(example: dict[str, Any], given: Sequence[Answer]) -> str:
        lengths = [max(len(words), 1) if by_length else 1 for words in said(example)]
        values = [answer.log_prob / length for answer, length in zip(given, lengths, strict=True)]
        if any(map(math.isnan, values)):
            return NOTHING_FOUND
        return str(list(example["choices"])[values.index(max(values))])  # the first of equals

    def score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
        scores = []
        for example, given in zip(examples, answers, strict=True):
            right = float(is_right(example, likeliest(example, given)))
            scores.append(math.nan if any(math.isnan(answer.log_prob) for answer in given) else right)
        return scores

    return Utility(
        wanted.task,
        dataset,
        examples,
        {split: [asks(one) for one in some] for split, some in examples.items()},
        score_examples,
        score_range=(0.0, 1.0),
        choice=likeliest,
    )


def read_icl_prompt(data: Data, dataset: str) -> str:
    """The file's `icl_prompt`, where the dataset needs one. Raises InputError."""
    icl_prompt = data.content.get("icl_prompt", "")
    if needs_icl_prompt(dataset) and (not isinstance(icl_prompt, str) or not icl_prompt):
        raise InputError(f'{data.path}: {dataset} needs its in-context example as a text in the field "icl_prompt"')
    return str(icl_prompt)


def needs_icl_prompt(dataset: str) -> bool:
    """Whether the prompts of this dataset start with the file's `icl_prompt`; the others ignore one."""
    return dataset.lower() == "knowledge_crosswords"


def prompt(example: dict[str, Any], dataset: str, icl_prompt: str = "") -> str:
    """Prompt of one example; `dataset`, in any case, picks its instruction; `icl_prompt` may precede it."""
    instruction = _INSTRUCTIONS.get(dataset.lower(), _DEFAULT_INSTRUCTION)
    choices = "".join(f"{key}: {text}\n" for key, text in example["choices"].items())
    text = f"{instruction}Question: {example['question']}\n{choices}The answer is"
    return f"{icl_prompt}\n{text}" if needs_icl_prompt(dataset) else text


def parse(example: dict[str, Any], output: str) -> str:
    """Key of the choice that `output` names, or "Z" when it names none.

    Three looks, each over the keys in the order of the file: a key within the first five characters, a key
    within the last five, the text of a choice anywhere (case ignored). A choice with an empty text is found
    in any output.
    """
    choices = example["choices"]
    for key in choices:
        if key in output[:5]:
            return str(key)
    for key in choices:
        if key in output[-5:]:
            return str(key)
    lowered = output.lower()
    for key, text in choices.items():
        if str(text).lower() in lowered:
            return str(key)
    return NOTHING_FOUND


def score(example: dict[str, Any], output: str) -> float:
    """1.0 when the parsed key is right, else 0.0; `output` has no white space at its ends."""
    return float(is_right(example, parse(example, output)))


def is_right(example: dict[str, Any], key: str) -> bool:
    """Whether the choice with this key is the example's answer, or one of several."""
    return key in map(str, right_answers(example))


def _parsed(example: dict[str, Any], given: Sequence[Answer]) -> str:
    return parse(example, given[0].text.strip())


def _score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
    return [score(example, given[0].text.strip()) for example, given in zip(examples, answers, strict=True)]
