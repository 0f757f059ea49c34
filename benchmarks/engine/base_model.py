"""The plain base model beside what is measured: on an engine of the same settings, in turns step by step.

Whole iterations take half a minute, in which a machine that others use changes its speed by more than what is looked
for. So the two take turns at every step of an engine, a few tenths of a second or less.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.engine.engines import engine, plain_vllm

# Prompts, as token ids, and how many tokens each is to be given.
Pass = Sequence[tuple[list[int], int]]


def llm_beside(serve: str) -> Any:
    """vLLM with the settings of the engine that serves in this way, and nothing of ours at work in it.

    Merged weights and mixtures need no more than the plain model, which each of their engines is without a particle;
    beside slots LoRA is on.
    """
    if serve == "slots":
        llm = plain_vllm()
    else:
        other = engine("mixture" if serve == "merged" else "merged")
        other.restore()
        llm = other.llm
    for one in (llm, engine(serve).llm):
        warm(one)
    return llm


def warm(llm: Any) -> None:
    """The first large steps of an engine are slow; here they are, for the plain model."""
    base = BaseModel(llm, [[[([token % 100 + 1] * 25, 4) for token in range(128)]]])
    base.work()


class BaseModel:
    """Completes waves of passes over prompts: a wave is one continuous batch, in which a pass finds nothing of another
    in the cache. So between two waves the engine runs empty, as a search has to between two moves, and within one it
    does not, as it need not.
    """

    def __init__(self, llm: Any, waves: Iterable[Sequence[Pass]]) -> None:
        self.seconds = 0.0
        """That it has worked so far."""
        self.prompts = 0
        self.tokens = 0
        self._llm, self._waves, self._names = llm, iter(waves), itertools.count()
        self._over = False

    def work(self, seconds: float = math.inf) -> None:
        """Go on until it has worked so many seconds in all, or has nothing left to do."""
        while self.seconds < seconds and not self._over:
            start = time.perf_counter()
            self._step()
            self.seconds += time.perf_counter() - start

    def _step(self) -> None:
        if not self._llm.llm_engine.has_unfinished_requests():
            if (wave := next(self._waves, None)) is None:
                self._over = True
                return
            self._llm.reset_prefix_cache()
            for number, one in enumerate(wave):
                for prompt, tokens in one:
                    self._submit(prompt, tokens, number)
        ended = [output for output in self._llm.llm_engine.step() if output.finished]
        self.prompts += len(ended)
        self.tokens += sum(len(output.outputs[0].token_ids) for output in ended)

    def _submit(self, prompt: list[int], tokens: int, number: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        asked = {"prompt_token_ids": prompt, "cache_salt": str(number)}
        self._llm.llm_engine.add_request(str(next(self._names)), asked, params)


@contextmanager
def beside(server: Any, base: BaseModel | None, pace: float = 1.0) -> Iterator[None]:
    """Before each step of the engine the base model works until it has worked `pace` times as long as all the rest.

    What it has not done by the end it does then. Its seconds are in whatever is timed inside, and have to be taken off.
    """
    if base is None:
        yield
        return
    began, own = time.perf_counter(), server.step

    def step() -> Any:
        base.work(pace * (time.perf_counter() - began - base.seconds))
        return own()

    server.step = step
    try:
        yield
    finally:
        del server.step
    base.work()
