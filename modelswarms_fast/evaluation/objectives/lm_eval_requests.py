"""What lm-eval asks of a model for one document, and what its filters and metrics make of the answers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modelswarms_fast.config import Sampling
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask

MAX_TOKENS = 256  # where a task says nothing, as lm-eval


def requests_of(task: Any, doc: Any, index: int, *, own: bool) -> list[Any]:
    """What lm-eval would ask of a model for a document; own: few-shot examples are of its split."""
    shots = task.config.num_fewshot or 0
    with _without(task, doc) if own else contextlib.nullcontext():
        context = task.fewshot_context(doc, num_fewshot=shots, gen_prefix=task.doc_to_prefix(doc))
    made = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, index, 1))
    if isinstance(made, list):
        return made
    return [made] * (task.config.repeats if task.OUTPUT_TYPE == "generate_until" else 1)


@contextlib.contextmanager
def _without(task: Any, doc: Any) -> Iterator[None]:
    """No document is its own few-shot example, which lm-eval sees to for its test split alone."""
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        yield
        return
    sample = sampler.sample

    def other(n: int, eval_doc: Any = None, **more: Any) -> Any:
        return sample(n=n, eval_doc=doc, **more)

    sampler.sample = other
    try:
        yield
    finally:
        del sampler.sample


def ask_of(instance: Any, name: str, max_tokens: int | None) -> Ask:
    """One of these requests, with at most `max_tokens` new tokens if that is given."""
    if instance.request_type == "loglikelihood":
        prompt, continuation = instance.args
        return Ask(prompt, 1, continuation)
    prompt, settings = instance.args
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    limit = settings.get("max_gen_toks", settings.get("max_new_tokens", MAX_TOKENS))
    return Ask(prompt, max_tokens or int(limit), None, stop, _sampling(settings, name))


def _sampling(settings: Mapping[str, Any], name: str) -> Sampling | None:
    """How a task's `generation_kwargs` draw, as lm-eval reads them."""
    drawn = settings.get("do_sample")
    temperature = float(settings.get("temperature", 1.0 if drawn else 0.0))
    if drawn is False or temperature == 0:
        return None
    if settings.get("top_k") not in (None, 0, -1):
        raise InputError(f"{name} of lm-eval draws with top_k, which is not supported; take it out of its YAML")
    return Sampling(temperature, float(settings.get("top_p", 1.0)))


def score(task: Any, metric: str, chosen: str, example: dict[str, Any], answers: Sequence[Answer]) -> Any:
    """What lm-eval's own filters and metric make of the answers to a document."""
    from lm_eval.api.instance import Instance

    generated = task.OUTPUT_TYPE == "generate_until"
    if not generated and any(math.isnan(answer.log_prob) for answer in answers):
        return math.nan
    kind, doc = "generate_until" if generated else "loglikelihood", example["doc"]
    # The repeats of a generated answer are one instance's.
    responses = [[answer.text for answer in answers]] if generated else [[one[2:]] for one in answers]
    instances = [Instance(kind, doc, (), index, resps=one) for index, one in enumerate(responses)]
    next(each for each in task._filters if each.name == chosen).apply(instances)
    found = task.process_results(doc, [instance.filtered_resps[chosen] for instance in instances])
    return found.get(metric, math.nan)


def choice_of(task: Any, metric: str, example: dict[str, Any], answers: Sequence[Answer]) -> int:
    """The place of the choice that a metric of lm-eval takes for the answer, by lm-eval's own arithmetic."""
    choices = task.doc_to_choice(example["doc"])
    values = np.array([answer.log_prob for answer in answers])
    likely = values[: len(choices)]  # of mutual information the rest is without the question
    if metric == "acc_norm":
        likely = likely / np.array([float(len(one)) for one in choices])
    elif metric == "acc_bytes":
        likely = likely / np.array([float(len(one.encode())) for one in choices])
    elif metric == "acc_mutual_info":
        likely = likely - values[len(choices) :]
    return int(likely.argmax())
