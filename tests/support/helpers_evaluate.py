"""A scripted engine and a source of positions: what a text is depends on the position and the prompt alone."""

import hashlib
import random

import torch

from modelswarms_fast.engines.protocol import Completion
from modelswarms_fast.evaluation.objectives import Ask, Utility
from modelswarms_fast.weights.population import Position


def number(*parts):
    """A number in [0, 1) that the parts decide."""
    data = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(data, "little") / 2**64


class ScriptedEngine:
    """Ends at most `at_once` requests a step, in an order of its own; notes all that it is told in `log`."""

    def __init__(self, slots=1, at_once=4, seed=0, answer=lambda held, prompt: str(number(held, prompt))):
        self.slots, self.device, self.dtype, self.max_model_len = slots, torch.device("cpu"), torch.float32, 1000
        self.watch, self.serve, self.auto_timings = None, "merged", {}
        self.log, self.running, self.held, self.used = [], {}, {}, set()
        self.tokenized = 0
        self._at_once, self._random, self._answer = at_once, random.Random(seed), answer

    def tokenizer(self, prompts):
        self.tokenized += 1
        return {"input_ids": [[ord(letter) for letter in prompt] for prompt in prompts]}

    def load(self, slot, row):
        self._put(slot, row.numpy().tobytes().hex())

    def load_mixture(self, slot, mixture):
        self._put(slot, mixture.numpy().tobytes().hex())

    def _put(self, slot, held):
        assert 0 <= slot < self.slots
        assert slot not in {request.slot for request in self.running.values()}, "loaded under running requests"
        self.log.append(("load", slot, len(self.running)))
        self.held[slot] = held

    def restore(self):
        self.held.clear()

    def submit(self, key, request, max_tokens):
        assert key not in self.used, "a key was used again"
        assert request.slot is None or request.slot in self.held
        self.used.add(key)
        self.running[key] = request
        self.log.append(("submit", request.slot, "".join(map(chr, request.prompt))))

    def step(self):
        self.log.append(("step", len(self.running)))
        keys = self._random.sample(sorted(self.running), self._random.randint(0, min(len(self.running), self._at_once)))
        return [(key, self._complete(self.running.pop(key))) for key in keys]

    def _complete(self, request):
        if request.continuation is not None:
            prompt, more = ("".join(map(chr, ids)) for ids in (request.prompt, request.continuation))
            chance = number(self.held.get(request.slot), prompt, more)
            return Completion("", len(more), -chance, chance < 0.5)
        held, prompt = self.held.get(request.slot), "".join(map(chr, request.prompt))
        if request.sampling is not None:
            return Completion(str(number(held, prompt, request.sampling.seed)), 3)
        return Completion(self._answer(held, prompt), 3)

    def drop(self, keys):
        for key in keys:
            self.log.append(("drop", key))
            del self.running[key]

    def log_probs(self, request, top=20):
        assert not self.running, "log_probs() while requests run"
        return {0: 0.0}


class Rows:
    """Rows as positions; equal rows are one position. Notes what is loaded, and what is brought near ahead."""

    def __init__(self, *values):
        self.values, self.loaded, self.ahead = [torch.tensor([float(value)]) for value in values], [], []

    def row(self, particle):
        return self.values[particle]

    def some(self, particles):
        return {particle: Row(self, particle) for particle in particles}


class Row:
    def __init__(self, rows, number):
        self.rows, self.number = rows, number

    def name(self):
        return self.row().numpy().tobytes()

    def row(self):
        return self.rows.values[self.number]

    def position(self):
        self.rows.loaded.append(self.number)
        return Position(row=self.row())

    def prefetch(self):
        self.rows.ahead.append(self.number)


def utility(prompts, score=lambda example, output: float(output), **fields):
    """A utility whose dev prompts these are, with one prompt on test; `score` gets an example and the last text."""
    splits = {"dev": list(prompts), "test": ["a test"]}
    examples = {split: [{"prompt": prompt} for prompt in texts] for split, texts in splits.items()}
    asks = {split: [(Ask(prompt, 5),) for prompt in texts] for split, texts in splits.items()}

    def score_examples(examples, answers):
        return [score(example, given[-1].text) for example, given in zip(examples, answers, strict=True)]

    given = {"asks": asks, "score_examples": score_examples} | fields
    return Utility("scripted", "scripted", examples, **given)
