"""An engine with its experts and a utility, opened once; any number of searches and evaluations run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.engines.parity_check import make_parity_check
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.runs.confirm import hold_back
from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator, Source, Spent
from modelswarms_fast.weights.experts import Experts, inner_products, read_experts
from modelswarms_fast.runs.loop import run_iterations
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.placement import Placement, plan_memory
from modelswarms_fast.ops import mix_
from modelswarms_fast.weights.population import LARGEST_NAMED, Population
from modelswarms_fast.records.progress import Progress
from modelswarms_fast.evaluation.early_stopping import Scores, digest
from modelswarms_fast.weights.shared_memory import shared_rows
from modelswarms_fast.swarm import Floats, Swarm
from modelswarms_fast.records.trace import Trace
from modelswarms_fast.evaluation.objectives import Files, Scoring, load_utility


@dataclass(frozen=True)
class SearchResult:
    """What one search has found."""

    row: torch.Tensor
    """[D] the winner, on the CPU."""
    mixture: list[float] | None
    """[n] the winner as a mixture of the experts; None with randomness="coordinate"."""
    particle: int
    """Which found it."""
    dev: float
    utilities: Floats
    """[P] of the initial particles; the first n are the experts."""
    stopped: str
    history: list[dict[str, Any]]
    """One line an iteration, as history.jsonl has them."""
    spent: Spent
    """What the search has cost beside what was known before it."""


class Experiment:
    """Experts, utility and base are read and checked on construction; `with experiment:` starts the engine and ends it.

    Scores are kept by position, so that no position is evaluated twice on a split: the experts once for all searches.
    (Rows of more than 32 MiB have no name and are.)
    """

    engine: Engine
    evaluator: Evaluator

    def __init__(
        self,
        experts: str | Path | Sequence[str | Path],
        *,
        base: str,
        task: str,
        data: Files = None,
        out: str | Path = ".",
        limit_dev: int | None = None,
        limit_test: int | None = None,
        max_tokens: int | None = None,
        scoring: Scoring = "generate",
        options: Mapping[str, str] | None = None,
        progress: bool = False,
        trace: str | Path | None = None,
        train: str | Path | None = None,
        only_search: int | None = None,
        confirm: int = 0,
        **settings: Any,
    ) -> None:
        """Read everything. The arguments are those of `search` and `load_utility`, and:

        Args:
            out: where a file of rows may lie, if `spill` names no folder.
            train: what the experts were trained on, for the methods that train or cluster.
            only_search: the experiment is for one search of so many particles, at least one an expert, which begins in
                the experts' own rows: no more memory than the search needs, and the experts are gone after it.
            confirm: dev examples that are kept back, as the split "confirm".
            settings: fields of EngineConfig.

        Raises:
            InputError: something given cannot be used; the message names it and the remedy.
            TypeError: a setting does not exist.
        """
        self.engine_config = EngineConfig(**settings)
        self.base, self.train = base, train
        limits: dict[str, Any] = {"limit_dev": limit_dev, "limit_test": limit_test, "max_tokens": max_tokens}
        self.utility = load_utility(task, data, **limits, scoring=scoring, options=options)
        if confirm:
            self.utility = hold_back(self.utility, confirm)
        self.placement: Placement | None = None
        """Where the rows of the only search lie, or the experts of state="mixture"."""
        self.out = Path(out)
        self._progress, self._trace = progress, Trace(trace)
        self._particles = only_search
        self.experts: Experts = read_experts(experts, dtype=self.row_dtype, place=self._place)
        if self.engine_config.stop_early and self.utility.score_range is None:
            raise InputError(
                f"stop_early is set but the scores of {self.utility.name} have no known range; give the function the "
                "attribute score_range = (lowest, highest), or leave stop_early out."
            )
        if self.engine_config.rounding == "stochastic" and self.experts.layout.dtype == torch.float32:
            raise InputError(
                "rounding is 'stochastic' but the rows are float32, which loses no step; use rounding='nearest' or "
                "row_dtype='bfloat16'."
            )
        self.base_folder = resolve_base(base)
        self._initial: list[Scores] | None = None
        self.initial_spent = Spent()
        """What `initial_scores` have cost."""

    def __enter__(self) -> Self:
        """Start the engine."""
        if self._progress and self.placement is not None:
            Console(stderr=True, soft_wrap=True).print(str(self.placement), highlight=False)
        self.engine = start_engine(self.base_folder, self.experts, self.engine_config)
        try:
            self.evaluator = Evaluator(self.engine, self.utility, tuple(self.utility.asks), trace=self._trace)
            if self.engine_config.serve == "auto":
                self.engine.autotune(self.evaluator.prompts("dev"), self.utility.max_tokens)
            self.evaluator.parity_check = make_parity_check(self.engine, self.base_folder, self.experts, self.engine_config)
            self._calibrate()
        except BaseException:
            self.engine.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the engine."""
        self.engine.close()

    @property
    def row_dtype(self) -> torch.dtype | None:
        """That the experts are cast to, None if they keep theirs."""
        name = self.engine_config.row_dtype
        return None if name == "auto" else getattr(torch, name)

    @property
    def initial_scores(self) -> list[Scores]:
        """Scores of the experts on each dev example, evaluated when they are first asked for."""
        if self._initial is None:
            before = self.evaluator.spent.copy()
            self._initial = self.score_mixtures(np.eye(len(self.experts.names)), "dev")
            self.initial_spent = self.evaluator.spent.since(before)
        return self._initial

    @cached_property
    def initial(self) -> Floats:
        """[n] utilities of the experts on dev."""
        return self._utilities(self.initial_scores)

    @cached_property
    def expert_products(self) -> list[list[float]] | None:
        """[n, n] inner products of the experts, by which distances of mixtures are exact."""
        return inner_products(self.experts.rows)

    @cached_property
    def expert_digests(self) -> list[str | None]:
        """What names the weights of each expert, so that results of others are not taken for theirs; None of large
        ones."""
        return [digest(row).hex() if row.nbytes <= LARGEST_NAMED else None for row in self.experts.rows]

    def utility_of(self, split: str, scores: Sequence[float]) -> float:
        """The utility of a particle with these scores on a split."""
        return self.utility.utility_of(split, scores)

    def score_mixtures(self, mixtures: npt.ArrayLike, split: str) -> list[Scores]:
        """Scores of mixtures [P, n] of the experts on each example of a split, all in one continuous batch."""
        points = torch.as_tensor(np.asarray(mixtures, dtype=np.float64))
        if self.engine_config.state == "mixture":
            return self._scores(_Mixtures(self, points), len(points), split)
        return self.score_rows([partial(self.mix, point) for point in points], split)

    def score_rows(self, rows: Sequence[Callable[[], torch.Tensor]], split: str) -> list[Scores]:
        """Scores of rows [D] on each example of a split, all in one continuous batch.

        A row is made when it is about to be served, perhaps twice, and not kept. With serve="mixture" one row is served
        at a time.
        """
        if self.engine.serve == "mixture":
            return [self.evaluator.score_model(row(), split, self.engine_config.engines) for row in rows]
        return self._scores(_Rows(rows), len(rows), split)

    def mixtures_on_dev(self, mixtures: npt.ArrayLike) -> Floats:
        """[P] utilities of mixtures [P, n] on dev."""
        return self._utilities(self.score_mixtures(mixtures, "dev"))

    def rows_on_dev(self, rows: Sequence[Callable[[], torch.Tensor]]) -> Floats:
        """[P] utilities of rows [D] on dev."""
        return self._utilities(self.score_rows(rows, "dev"))

    def base_row(self) -> torch.Tensor | None:
        """[D] the base model in the experts' layout and dtype; None for LoRA experts, whose base is the adapter 0.

        Raises:
            InputError: it has other tensors than the experts.
        """
        layout = self.experts.layout
        if self.experts.kind == "lora":
            return None
        base = read_experts([self.base_folder], dtype=layout.dtype, minimum=1)
        if base.layout != layout:
            raise InputError(f"{self.base} has other tensors than the experts; use the base that they share.")
        return base.rows[0]

    def _calibrate(self) -> None:
        """Have a utility that wants it fix what it measures with, on what the experts answer to dev."""
        if self.utility.calibrate is not None:
            answers = [one for row in self.experts.rows for one in self.evaluator.generate(row, "dev")]
            self.utility.calibrate(self.utility.examples["dev"] * len(self.experts.names), answers)

    def _utilities(self, scores: Sequence[Scores]) -> Floats:
        return np.array([self.utility_of("dev", one) for one in scores], dtype=np.float64)

    def _scores(self, source: Source, count: int, split: str) -> list[Scores]:
        found = self.evaluator.score_population(source, range(count), split)
        return [found[index].known for index in range(count)]

    def mix(self, mixture: torch.Tensor) -> torch.Tensor:
        """The row [D] of a mixture [n] of the experts, on the CPU; an expert itself is not copied."""
        return mix_row(self.experts, mixture)

    def particles(self, swarm: Swarm) -> Population:
        """The rows of a search; in those of the experts if the experiment is for one search."""
        experts, plan, device = self.experts, self.placement, self.engine.device
        if plan is None and swarm.first == list(range(swarm.n_experts)):  # else its first rows are other experts
            plan = self._placement(swarm.config.particles, len(experts.names), experts.layout.size, experts.layout.dtype)
            room = plan.allocate(experts.layout.size, experts.layout.dtype)
            rows = room[: len(experts.names)].copy_(experts.rows)
            experts = replace(experts, rows=rows, room=room)
        return Population(experts, swarm, self.engine_config, device, plan)

    def swarm(self, config: SwarmConfig) -> SearchResult:
        """One search.

        Raises:
            InputError: the settings contradict those of the engine, or there are fewer particles than experts.
        """
        check_together(config, self.engine_config)
        swarm, before = Swarm(config, len(self.experts.names)), self.evaluator.spent.copy()
        history: list[dict[str, Any]] = []
        quiet = Progress(False, config.iterations, config.particles)
        with closing(self.particles(swarm)) as particles:
            utilities, _, stopped, _ = run_iterations(
                swarm, particles, self.evaluator, history, quiet, stop_early=self.engine_config.stop_early
            )
            row = particles.global_best().detach().to("cpu", copy=True)
            mixture = particles.global_best_mixture()
        best, spent = swarm.global_best, self.evaluator.spent.since(before)
        return SearchResult(row, mixture, swarm.global_best_particle, best, utilities, stopped, history, spent)

    def check_base(self) -> None:
        """Serve the base model again, and prove that nothing of what was served is left in it.

        Raises:
            RuntimeError: something is.
        """
        self.engine.restore()
        if self.evaluator.parity_check is not None:
            self.evaluator.parity_check.check(None, None)

    def _placement(self, particles: int, experts: int, size: int, dtype: torch.dtype) -> Placement:
        here = torch.cuda.is_available() and not self.engine_config.own_processes
        device = torch.device("cuda" if here else "cpu")
        shape: dict[str, Any] = {"particles": particles, "experts": experts, "size": size, "dtype": dtype}
        if here and self.engine_config.engine == "vllm" and not hasattr(self, "engine"):
            shape["gpu_memory_utilization"] = 0.75  # as engines/vllm/engine.py asks for
        return plan_memory(self.engine_config, **shape, device=device, out=self.out)

    def _place(self, n: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows that begin with the experts: those of the only search, whose first positions they are, or n."""
        if self._particles is None and self.engine_config.state == "weights":
            rows = shared_rows if self.engine_config.own_processes else empty_rows
            return rows(n, size, dtype)
        self.placement = self._placement(max(self._particles or n, n), n, size, dtype)
        return self.placement.allocate(size, dtype)


class _Rows:
    """Rows that are made when they are needed; the last one is kept, as it is named, loaded and checked in turn."""

    def __init__(self, rows: Sequence[Callable[[], torch.Tensor]]) -> None:
        self._rows = rows
        self._last: tuple[int, torch.Tensor] | None = None

    def key(self, particle: int) -> bytes | None:
        row = self.row(particle)
        return digest(row) if row.nbytes <= LARGEST_NAMED else None

    def load(self, engine: Engine, slot: int, particle: int) -> None:
        engine.load(slot, self.row(particle))

    def row(self, particle: int) -> torch.Tensor:
        if self._last is None or self._last[0] != particle:
            self._last = (particle, self._rows[particle]())
        return self._last[1]

    def prefetch(self, particles: Sequence[int]) -> None:
        pass


class _Mixtures:
    """Mixtures [P, n] that an engine serves as they are."""

    def __init__(self, experiment: Experiment, mixtures: torch.Tensor) -> None:
        self._session, self._mixtures = experiment, mixtures

    def key(self, particle: int) -> bytes | None:
        return self._mixtures[particle].numpy().tobytes()

    def load(self, engine: Engine, slot: int, particle: int) -> None:
        engine.load_mixture(slot, self._mixtures[particle])

    def row(self, particle: int) -> torch.Tensor:
        return self._session.mix(self._mixtures[particle])

    def prefetch(self, particles: Sequence[int]) -> None:
        pass


def mix_row(experts: Experts, mixture: torch.Tensor) -> torch.Tensor:
    """The row [D] of a mixture [n] of the experts, on the CPU; an expert itself is not copied."""
    ones = torch.nonzero(mixture).flatten().tolist()
    if len(ones) == 1 and mixture[ones[0]] == 1:
        return experts.rows[ones[0]]  # bit by bit, so that it has the name it has in a search
    row = torch.empty((1, experts.layout.size), dtype=experts.layout.dtype)
    mix_(row, experts.rows, mixture[None])
    return row[0]


def check_together(config: SwarmConfig, engine_config: EngineConfig) -> None:
    """What neither of them can know alone. Raises InputError."""
    if config.randomness == "coordinate" and engine_config.state == "mixture":
        raise InputError(
            "randomness is 'coordinate' but state='mixture' has no coordinates of weights; use state='weights'."
        )
