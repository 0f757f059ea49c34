"""Simulated engines, the real driver: how long engines of a pool stand idle, and what the driver costs.

    python -m benchmarks.cluster.simulate --engines 64 --particles 100 --prompts 200

Swarm, population, evaluator, pool and sharing are those of a search. Engines are not: each works on so many requests at
once, and takes so many seconds for a batch, for a load, and for a message to come; some are slower than others. Their
clock is a number, so that hours take seconds. The driver's cost is real: processor seconds of this process, without
those of the simulation itself. While the driver works the simulated clock stands still; so `seconds` has no driver in
it, and the cost beside it is to be compared with it.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import resource
import string
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.engines.pool.members import Message
from modelswarms_fast.engines.pool.pool import EnginePool
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import load_utility
from modelswarms_fast.records.trace import Trace
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.population import Population


@dataclass(frozen=True)
class Times:
    """What engines take, in seconds; measured ones are to be given, the defaults are round numbers."""

    batch: int = 16
    """Requests that an engine works on at once."""
    prompt: float = 0.05
    """Of an engine's time, for each request of a full batch."""
    load: float = 0.02
    """To load a particle."""
    message: float = 0.002
    """For a message, one way."""
    spread: float = 0.2
    """Standard deviation of the logarithm of a batch's time."""
    stragglers: float = 0.02
    """Share of the engines that take `slow` times as long."""
    slow: float = 1.5


class Simulated:
    """The members of a pool, on one simulated clock."""

    def __init__(self, engines: int, times: Times, seed: int = 0) -> None:
        self.now, self.events = 0.0, []
        self._order = itertools.count()
        self.seconds = 0.0
        """Of this process, in the simulation."""
        draw = random.Random(seed)
        slow = set(draw.sample(range(engines), round(times.stragglers * engines)))
        self.all = [
            Engine(number, self, times, times.slow if number in slow else 1.0, random.Random(draw.random()))
            for number in range(engines)
        ]
        for one in self.all:
            self.at(0.0, one, "ready")

    def at(self, seconds: float, engine: Engine, what: str, content: Any = None) -> None:
        """Something happens to an engine, or is heard of it, so many seconds from now."""
        heapq.heappush(self.events, (self.now + seconds, next(self._order), engine, what, content))

    def wait(self, seconds: float) -> Iterator[tuple[Engine, Message | None]]:
        """The next message that comes, and those that come at the same time."""
        began, found = time.process_time(), []
        while self.events and (not found or self.events[0][0] <= self.now):
            self.now, _, engine, what, content = heapq.heappop(self.events)
            if what == "work":
                engine.work()
            elif what == "ready":
                found.append((engine, ("ready", "merged", 1, torch.float32, 4096, 2 * engine.times.batch)))
            elif what == "calls":
                engine.take(content)
            else:
                found.append((engine, (what, *content)))
        self.seconds += time.process_time() - began
        yield from found

    def place(self, slot: int, row: torch.Tensor) -> tuple[Any, ...]:
        """Rows are not served here."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to end."""
        self.all = []


class Engine:
    """One simulated engine: as `Served` with one slot, in batches."""

    restarts_left, ready = 0, False

    def __init__(self, number: int, clock: Simulated, times: Times, factor: float, draw: random.Random) -> None:
        self.number, self.name, self.times = number, f"Engine {number}", times
        self._clock, self._factor, self._draw = clock, factor, draw
        self.calls: list[tuple[Any, ...]] = []
        self.knows: set[int] = set()
        self._todo: deque[int] = deque()
        self._busy = self._loading = 0.0
        self.worked, self.loads = 0.0, 0
        self._working = False

    def flush(self) -> None:
        """The calls come after the time of a message."""
        if self.calls:
            self._clock.at(self.times.message, self, "calls", self.calls)
            self.calls = []

    def take(self, calls: Sequence[tuple[Any, ...]]) -> None:
        """Calls have come."""
        for name, *arguments in calls:
            if name == "submit":
                self._todo.append(arguments[0])
            elif name == "load_mixture":
                self._loading += self.times.load
                self.loads += 1
            elif name == "drop":
                gone = set(arguments[0])
                self._todo = deque(one for one in self._todo if one not in gone)
        if not self._working:
            self.work()

    def work(self) -> None:
        """Begin a batch, if there is something to do; what it ends is heard when it has ended."""
        self._working = bool(self._todo)
        if not self._working:
            return
        batch = [self._todo.popleft() for _ in range(min(self.times.batch, len(self._todo)))]
        noise = self._draw.lognormvariate(0.0, self.times.spread)
        seconds = self._loading + self.times.prompt * len(batch) * noise * self._factor
        self._loading = 0.0
        self.worked += seconds
        answers = [(one, "yes" if hash((one, 7)) % 3 else "no", 1) for one in batch]
        self._clock.at(seconds, self, "work")
        self._clock.at(seconds + self.times.message, self, "ended", (answers, []))

    def begin(self) -> None:
        """It never ends."""

    def heard(self) -> None:
        """It has said something."""

    def check(self, *, owes: bool) -> None:
        """It never hangs."""

    def lives(self) -> bool:
        """Always."""
        return True

    def cause(self) -> str:
        """It never ends."""
        return ""

    def end(self) -> None:
        """Nothing to end."""


def simulate(
    engines: int, particles: int, prompts: int, times: Times, iterations: int = 2, experts: int = 10
) -> dict[str, Any]:
    """Iterations of a search; idle share, simulated seconds and the driver's real ones, of an iteration on average."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = {word: index for index, word in enumerate(["<end>", "yes", "no", *string.ascii_letters])}
        tokenizer = Tokenizer(WordLevel(words, unk_token="<end>"))
        tokenizer.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
        letters = random.Random(0)
        asked = [
            {"question": " ".join(letters.choices(string.ascii_letters, k=12)), "answer": "yes"} for _ in range(prompts)
        ]
        (folder / "data.json").write_text(json.dumps({"dev": asked, "test": asked[:1]}))
        members = Simulated(engines, times)
        config = EngineConfig(engine="transformers", engines=engines, state="mixture")
        pool = EnginePool(folder, None, config, members)
        utility = load_utility("exact_match", str(folder / "data.json"))
    evaluator = Evaluator(pool, utility, ("dev",), Trace(), engines)
    swarm = Swarm(SwarmConfig(particles=particles, iterations=iterations, patience=10**6), experts)
    layout = Layout.of({"weight": torch.empty(4)}, torch.float32)
    rows = torch.zeros((experts, layout.size))
    found = Experts("lora", tuple(map(str, range(experts))), layout, rows, rows, (), {}, ())
    population = Population(found, swarm.initial_positions(), config, torch.device("cpu"))
    loop = SearchLoop(swarm, population, utility)
    cost, simulated, idle = [], [], []
    for _ in range(iterations + 1):
        start, began, apart = members.now, time.process_time(), members.seconds
        worked = sum(one.worked for one in members.all)
        scores = evaluator.score_population(population.candidates(loop.wanted), "dev")
        loop.tell(scores)
        loop.move()
        cost.append(time.process_time() - began - (members.seconds - apart))
        simulated.append(members.now - start)
        idle.append(1 - (sum(one.worked for one in members.all) - worked) / (engines * simulated[-1]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    requests = particles * prompts
    return {
        "engines": engines,
        "particles": particles,
        "prompts": prompts,
        "idle share": float(np.mean(idle)),
        "seconds an iteration": float(np.mean(simulated)),
        "driver, seconds an iteration": float(np.mean(cost)),
        "driver, ms a particle": float(np.mean(cost)) / particles * 1e3,
        "driver, µs a request": float(np.mean(cost)) / requests * 1e6,
        "growth of peak memory, MB": memory / 1e3,
    }


def main() -> None:
    """One line a simulation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--particles", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=1)
    for name, value in vars(Times()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = vars(parser.parse_args())
    times = Times(**{name: given[name] for name in vars(Times())})
    for engines, particles in itertools.product(given["engines"], given["particles"]):
        result = simulate(engines, particles, given["prompts"], times, given["iterations"])
        print(json.dumps(result | {"times": vars(times)}), flush=True)


if __name__ == "__main__":
    main()
