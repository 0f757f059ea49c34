"""An engine that mixes the experts' next-token probabilities, not their weights: Σ c_j p_j(token | prefix).

The experts are any transformers models: LoRA adapters of one base, or checkpoints of different architectures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from modelswarms_fast.config import Serve
from modelswarms_fast.engines.ensemble.decoding import Floats, PendingSequence, Stream
from modelswarms_fast.engines.ensemble.vocabulary import Vocabulary
from modelswarms_fast.engines.protocol import Completion, Request, Watch, working
from modelswarms_fast.engines.sampling import Draw
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError

# Distinct prompts in a step: decoding so few sequences costs hardly more for twice as many.
BATCH = 32

Fuse = Literal["probabilities", "logits"]
Encode = Callable[[Any, str], list[int]]
"""Tokenizer of an expert and a user's message → token ids of the expert's prompt, in its own chat template."""
Route = Callable[[Request], Floats]
"""What is asked → coefficients [n] of the experts for it, none negative, of sum 1."""


class Member(NamedTuple):
    """One expert: a model, and the row of weights [D] that makes it this expert; None where it is one as it is."""

    engine: TransformersEngine
    row: torch.Tensor | None


def clipped(mixture: Sequence[float] | Floats) -> Floats:
    """Coefficients [n] of distributions for any position: negative ones are 0, and the rest is scaled to sum 1.

    A position whose coefficients sum to 1 has a positive one. Raises ValueError if there is none.
    """
    positive = np.maximum(np.asarray(mixture, dtype=np.float64), 0.0)
    if not 0 < positive.sum() < math.inf:
        raise ValueError(f"no coefficient of {mixture} is positive")
    scaled: Floats = positive / positive.sum()
    return scaled


class EnsembleEngine:
    """Serves mixtures of n experts' next-token distributions, as many slots as asked for.

    What is computed depends on prefixes, not on slots: particles that are asked one prompt share its pass through each
    expert, and go on sharing every token as long as they choose the same. An expert whose coefficient is 0 is not run.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        slots: int = 1,
        fuse: Fuse = "probabilities",
        encode: Encode | None = None,
    ) -> None:
        """`fuse`: what is mixed, probabilities (float32), or logits as Pack of LLMs does. `encode`: makes the prompts
        of requests that have a message; None: every expert gets the prompt of the first.

        Raises:
            InputError: the experts' tokenizers share too little.
        """
        first = members[0].engine
        self.slots, self.device, self.dtype, self.tokenizer = slots, first.device, first.dtype, first.tokenizer
        self.max_model_len = min(member.engine.max_model_len for member in members)
        self.serve: Serve = "mixture"
        self.auto_timings: dict[str, float] = {}
        self.watch: Watch | None = None
        self.passes = 0
        """Prompts that have gone through an expert: what an answer costs beside one model's."""
        self._members, self._fuse, self._encode_message = list(members), fuse, encode
        models = [member.engine.model for member in members]
        widths = [model.get_output_embeddings().weight.shape[0] for model in models]
        ends = [_ends(model) for model in models]
        self._vocabulary = Vocabulary.of([member.engine.tokenizer for member in members], widths, ends)
        self._routes: dict[int, Route] = {}
        self._waiting: dict[int, tuple[Request, int]] = {}
        self._held: dict[int, int] = {}  # model → the member whose row is in it

    def autotune(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """There is nothing to choose from."""

    def set_mode(self, mode: Serve) -> None:
        """There is one mode."""

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a position [n]: its coefficients, `clipped`."""
        self.load_mixture(slot, row)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve a position [n]: its coefficients, `clipped`."""
        weights = clipped(mixture.detach().cpu().double().numpy())
        self.load_route(slot, lambda request: weights)

    def load_route(self, slot: int, route: Route) -> None:
        """Serve from a slot coefficients that depend on the request."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        start = time.perf_counter()
        self._routes[slot] = route
        if self.watch is not None:
            self.watch("load", 0, start, time.perf_counter())

    def restore(self) -> None:
        """Forget what is loaded; there is no base model to serve."""
        self._routes.clear()

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request, or to look at its continuation. Raises InputError for a likelihood
        under several tokenizers, which cut it into different tokens."""
        if request.slot not in self._routes:
            raise RuntimeError("load a slot first: an ensemble has no base model")
        if request.continuation is not None and not self._vocabulary.same:
            raise InputError(
                "The experts have different tokenizers, which have no common likelihood; generate instead."
            )
        self._waiting[key] = (request, max_tokens)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion]]:
        """Complete the shortest prompts that wait, for all slots that ask them, all at once."""
        if not self._waiting:
            return []
        start = time.perf_counter()
        waiting = {tuple(request.prompt): request for request, _ in self._waiting.values()}
        prompts = sorted(waiting, key=len)[:BATCH]
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        asked: list[PendingSequence] = []
        for key, (request, limit) in list(self._waiting.items()):
            if (number := numbers.get(tuple(request.prompt))) is not None:
                assert request.slot is not None
                del self._waiting[key]
                weights, drawn = self._routes[request.slot](request), request.sampling
                one = PendingSequence(key, number, weights, limit, request.continuation)
                one.draw = None if drawn is None or one.forced is not None else Draw(drawn)
                asked.append(one)
        with working("ensemble"):
            self._complete([waiting[prompt] for prompt in prompts], asked)
        if self.watch is not None:
            self.watch("step", 0, start, time.perf_counter())
        return [(one.key, self._completion(one)) for one in asked]

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests that wait."""
        for key in keys:
            self._waiting.pop(key, None)

    @torch.inference_mode()
    def log_probs(self, request: Request, top: int | None = None) -> dict[int, float]:
        """Natural log-probabilities of the next token by the first expert's token id: the `top` most likely, or all."""
        assert request.slot is not None
        one = PendingSequence(0, 0, self._routes[request.slot](request), 1, None)
        streams = self._begin([request], [one])
        values, tokens = self._distribution(streams, [one])[0].log().topk(top or len(self._vocabulary.ids[0]))
        return dict(zip(self._vocabulary.ids[0][tokens.cpu()].tolist(), values.tolist(), strict=True))

    @torch.inference_mode()
    def prompt_logits(self, member: int, prompt: list[int]) -> torch.Tensor:
        """[len(prompt), K] float32 what an expert says after each token of a prompt; for one common tokenizer."""
        inputs = torch.tensor([prompt], device=self.device)
        self.passes += 1
        return self._vocabulary.logits(member, self._model(member)(inputs).logits[0])

    @property
    def one_tokenizer(self) -> bool:
        """Whether all experts have the same."""
        return self._vocabulary.same

    def close(self) -> None:
        """Nothing outlives an engine in this process."""

    def _complete(self, prompts: list[Request], asked: list[PendingSequence]) -> None:
        """Decode until every request has ended."""
        streams = self._begin(prompts, asked)
        running = asked
        while True:
            probabilities = self._distribution(streams, running)
            likeliest = probabilities.argmax(dim=-1).tolist()
            for index, one in enumerate(running):
                one.take(likeliest[index], probabilities[index], self._vocabulary.ends)
            if not (running := [one for one in running if not one.ended]):
                return
            # One sequence for all that have chosen the same after the same.
            sequences = list(dict.fromkeys((one.sequence, one.tokens[-1]) for one in running))
            numbers = {sequence: number for number, sequence in enumerate(sequences)}
            for one in running:
                one.sequence = numbers[one.sequence, one.tokens[-1]]
            for member, stream in streams.items():
                wanted = sorted({one.sequence for one in running if one.weights[member] > 0})
                parents, tokens = [sequences[row][0] for row in wanted], [sequences[row][1] for row in wanted]
                ids = self._vocabulary.ids[member][torch.tensor(tokens, dtype=torch.long)]
                stream.advance(partial(self._model, member), wanted, parents, ids)

    def _begin(self, prompts: list[Request], asked: list[PendingSequence]) -> dict[int, Stream]:
        """Put the prompts through the experts that have a say in them."""
        streams = {}
        for member in range(len(self._members)):
            wanted = sorted({one.sequence for one in asked if one.weights[member] > 0})
            if wanted:
                inputs = [self._encode(member, prompts[row]) for row in wanted]
                most = max(one.room for one in asked)
                if max(map(len, inputs)) + most > self._members[member].engine.max_model_len:
                    raise InputError(f"A prompt is too long for expert {member}; raise max_model_len or leave it out.")
                streams[member] = Stream(self._model(member), inputs, wanted, self.device)
                self.passes += len(wanted)
        return streams

    def _distribution(self, streams: dict[int, Stream], asked: list[PendingSequence]) -> torch.Tensor:
        """[len(asked), K] float32: what is said next to each request."""
        mixed = torch.zeros((len(asked), len(self._vocabulary.ids[0])), device=self.device)
        for member, stream in streams.items():
            at = {row: index for index, row in enumerate(stream.rows)}
            mine = [index for index, one in enumerate(asked) if one.weights[member] > 0]
            if not mine:
                continue
            said = self._vocabulary.logits(member, stream.logits)
            if self._fuse == "probabilities":
                said = torch.softmax(said, dim=-1)
            weights = torch.tensor([asked[index].weights[member] for index in mine], dtype=torch.float32)
            rows = torch.tensor([at[asked[index].sequence] for index in mine], device=self.device)
            mixed[torch.tensor(mine, device=self.device)] += weights.to(self.device)[:, None] * said[rows]
        return mixed if self._fuse == "probabilities" else torch.softmax(mixed, dim=-1)

    def _model(self, member: int) -> Any:
        """The model of an expert, with the expert's weights in it."""
        engine, row = self._members[member]
        if row is not None and self._held.get(id(engine)) != member:
            engine.load(0, row)
            self._held[id(engine)] = member
        return engine.model

    def _encode(self, member: int, request: Request) -> list[int]:
        tokenizer = self._members[member].engine.tokenizer
        if tokenizer is self.tokenizer:
            return request.prompt
        if request.message is not None and self._encode_message is not None:
            return self._encode_message(tokenizer, request.message)
        if self._vocabulary.same:
            return request.prompt
        text = self.tokenizer.decode(request.prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return list(tokenizer(text)["input_ids"])

    def _completion(self, one: PendingSequence) -> Completion:
        if one.forced is not None:
            return Completion("", len(one.forced), one.log_prob, one.greedy)
        ids = self._vocabulary.ids[0][torch.tensor(one.tokens, dtype=torch.long)].tolist()
        return Completion(str(self.tokenizer.decode(ids, skip_special_tokens=True)), len(ids), ids=ids)


def _ends(model: Any) -> list[int]:
    """Token ids that end a text of a model."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [])
