"""An engine with its experts and an objective, opened once; any number of searches and evaluations run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from modelswarms_fast.config import EngineConfig, Serve, SwarmConfig, TaskConfig, fields_of
from modelswarms_fast.engines.parity_check import make_parity_check, start_oracle
from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.engines.start import check_base_answers, start_engine
from modelswarms_fast.engines.vllm.arguments import GPU_SHARE
from modelswarms_fast.errors import InputError, NoScoreError, quoted
from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.evaluation.early_stopping import Scores
from modelswarms_fast.evaluation.evaluator import Candidate, Evaluator
from modelswarms_fast.evaluation.holdout import hold_back
from modelswarms_fast.evaluation.objectives import Files, Utility, load_utility
from modelswarms_fast.evaluation.objectives.utility import mean
from modelswarms_fast.evaluation.racing import Race
from modelswarms_fast.evaluation.spent import Spent
from modelswarms_fast.policies import Policy, Problem, find_policy, load_policy
from modelswarms_fast.policies.space import space_of
from modelswarms_fast.records.progress import log, phase, say
from modelswarms_fast.records.run_folder import CONFIG, make_folder, will_write
from modelswarms_fast.records.score_file import ScoreFile
from modelswarms_fast.records.trace import Trace
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.swarm import Floats, Swarm
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.base_model import check_finite, digest_of_base, resolve_base
from modelswarms_fast.weights.experts import Experts, base_row, inner_products, read_experts
from modelswarms_fast.weights.mixing import mix_row, products_of_updates
from modelswarms_fast.weights.placement import Placement, fits, plan_memory
from modelswarms_fast.weights.population import MadeRow, MixtureOf, Population
from modelswarms_fast.weights.row_name import row_name
from modelswarms_fast.weights.row_table import count_rows
from modelswarms_fast.weights.shared_memory import shared_rows

LOGS = "engines"
"""Folder of the logs of a cluster's engines."""
ENGINES = {"vllm": "vLLM", "transformers": "transformers"}


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

    Scores are kept by position, so that no position is scored twice on a split: the experts once for all searches.
    """

    engine: Engine
    evaluator: Evaluator

    @checked
    def __init__(
        self,
        experts: str | Path | Sequence[str | Path],
        *,
        base: str,
        task: str | Utility,
        data: Files = None,
        out: str | Path = ".",
        progress: bool = False,
        trace: str | Path | None = None,
        train: str | Path | None = None,
        swarm: Mapping[str, Any] | None = None,
        searches: int | None = 1,
        confirm: int = 0,
        **settings: Any,
    ) -> None:
        """Read everything. The arguments are those of `search` and `load_utility`, and:

        Args:
            task: or a utility that is loaded already.
            out: where a file of rows may lie, if `spill` names no folder.
            train: what the experts were trained on, for the methods that train or cluster.
            swarm: fields of SwarmConfig that the searches will have, as far as they are known; `particles` defaults to
                the number of experts. They say how much memory is needed, and what state="auto" becomes.
            searches: searches under way at once, each with rows of its own beside the experts'. None: there is one
                search, which begins in the experts' own rows: no more memory than it needs, and the experts are gone
                after it.
            confirm: dev examples that are kept back, as the split "confirm".
            settings: fields of TaskConfig and EngineConfig.

        Raises:
            InputError: something given cannot be used; the message names it and the remedy.
            TypeError: a setting does not exist.
        """
        of_task, of_engine = fields_of(TaskConfig, settings)
        self.task_config, self.engine_config = TaskConfig(**of_task), EngineConfig(**of_engine)
        self.base, self.train, self.confirm = base, train, confirm
        self.utility = load_utility(task, data, **of_task) if isinstance(task, str) else task
        if confirm:
            self.utility = hold_back(self.utility, confirm)
        self.placement: Placement | None = None
        """Where the rows of the only search lie, or the experts of state="mixture"."""
        self.out = Path(out)
        self._printed: dict[int, str] = {}
        self._progress, self._trace = progress, Trace(trace)
        self._swarm, self._searches = dict(swarm or {}), searches
        self._started = False
        self.open_scores: Callable[[], ScoreFile] | None = None
        """Opens the file that evaluations are written into, once nothing is left that the input could fail at."""
        self.served: Serve | None = None
        """How an earlier call of the run was served, with serve="auto"."""
        self.why_state = "as asked for"
        """Why `engine_config.state` is what it is."""
        self.base_folder = resolve_base(base)
        with phase("reading the experts", show=progress):
            found = read_experts(experts, dtype=self.row_dtype, base=self.base_folder, place=self._place)
        self.experts: Experts = replace(found, combine=self.engine_config.combine)
        self._check_space(self._swarm.get("space", SwarmConfig.space))
        if found.kind == "full" and self.engine_config.combine == "delta":
            raise InputError(
                "combine is 'delta' but full checkpoints have no factors: their mixture is the same in both spaces; "
                "leave combine out."
            )
        if progress:
            for note in self.experts.notes:
                say(note)
        if found.whole and self.engine_config.combine == "delta":
            raise InputError(
                f"combine is 'delta' but an expert has trained {found.whole[0]} whole (modules_to_save), which has no"
                " factors; use combine='factors'."
            )
        self.names = self.experts.names
        self.known: tuple[Floats, Floats] = (np.empty((0, len(self.names))), np.empty(0))
        """Mixtures [m, n] and utilities [m] on dev that earlier runs have found."""
        if self.engine_config.stop_early and self.utility.score_range is None:
            raise InputError(
                f"stop_early is set but the scores of {self.utility.name} have no known range; give the function the "
                "attribute score_range = (lowest, highest), or leave stop_early out."
            )
        if self.engine_config.race:
            check_race(self.utility)
        if self.engine_config.rounding == "stochastic" and self.experts.layout.dtype == torch.float32:
            raise InputError(
                "rounding is 'stochastic' but the rows are float32, which loses no step; use rounding='nearest' or "
                "row_dtype='bfloat16'."
            )
        self._initial: list[Scores] | None = None
        self.initial_spent = Spent()
        """What `initial_scores` have cost."""

    def __enter__(self) -> Self:
        """Start the engine."""
        if self._progress:
            say_data(self.utility)
        if self.placement is not None:
            if self._progress:
                say(f"{self.placement} (state {self.engine_config.state}: {self.why_state})")
            log.info("%s", self.placement.details())
        config = self.engine_config
        if config.serve == "auto" and self.served is not None:  # to time again could give another answer
            config = replace(config, serve=self.served)
        with ExitStack() as stack:
            oracle = start_oracle(self.base_folder, self.experts, config)
            if oracle is not None:
                stack.callback(oracle.close)
            with phase(f"starting {ENGINES[config.engine]}", show=self._progress):
                self.engine = start_engine(
                    self.base_folder, self.experts, config, self.out.absolute().name, self._keep_log
                )
            stack.callback(lambda: self.engine.close())
            splits = tuple(self.utility.asks)
            self.evaluator = Evaluator(self.engine, self.utility, splits, self._trace, config.engines)
            check_base_answers(self.engine, self.base_folder, self.evaluator.prompts("dev")[0])
            if config.serve == "auto":
                if oracle is not None:
                    oracle.wait()
                with phase("timing the ways to serve", show=self._progress):
                    self.engine.autotune(self.evaluator.prompts("dev"), self.utility.max_tokens)
            if oracle is not None:
                with phase("preparing the parity check", show=self._progress):
                    self.evaluator.parity_check = make_parity_check(
                        self.engine, oracle, self.experts, config, self.evaluator.probes("dev")
                    )
            self._started = True
            if self.open_scores is not None:
                self.evaluator.keep_in(self.open_scores())
            self._calibrate()
            self._processes = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the engine, and the oracle of its parity check.

        Raises InputError if no initial particle had a score because of the base model's weights.
        """
        self._processes.close()
        if isinstance(error, NoScoreError):
            check_finite(self.base_folder)

    def _keep_log(self, engine: int, text: str) -> None:
        """Append what an engine of a cluster has printed to its log in the run folder, once that is there."""
        self._printed[engine] = self._printed.get(engine, "") + text
        if not (self.out / CONFIG).exists():
            return
        will_write(self.out, f"{LOGS}/")
        make_folder(self.out / LOGS)
        for number, printed in self._printed.items():
            with (self.out / LOGS / f"engine-{number + 1}.log").open("a") as file:
                file.write(printed)
        self._printed.clear()

    @property
    def row_dtype(self) -> torch.dtype | None:
        """That the experts are cast to, None if they keep theirs."""
        name = self.engine_config.row_dtype
        return None if name == "auto" else getattr(torch, name)

    @property
    def initial_scores(self) -> list[Scores]:
        """Scores of the experts on each dev example, evaluated when they are first asked for."""
        if self._initial is None:
            before, asked_by = self.evaluator.spent.copy(), self.evaluator.asked_by
            self.evaluator.asked_by = "experts"
            self._initial = self.score_mixtures(np.eye(len(self.experts.names)), "dev")
            self.evaluator.asked_by = asked_by
            self.initial_spent = self.evaluator.spent.since(before)
        return self._initial

    @cached_property
    def initial(self) -> Floats:
        """[n] utilities of the experts on dev."""
        return self._utilities(self.initial_scores)

    @cached_property
    def expert_products(self) -> list[list[float]] | None:
        """[n, n] inner products of the experts, by which distances of mixtures are exact."""
        if self.experts.combine == "delta":
            return products_of_updates(self.experts)
        return inner_products(self.experts.rows)

    @cached_property
    def base_digest(self) -> str:
        """What names the base model's weights, config and tokenizer."""
        return digest_of_base(self.base_folder)

    @cached_property
    def expert_digests(self) -> list[str]:
        """What names the weights of each expert, so that results of others are not taken for theirs."""
        return [row_name(row).hex() for row in self.experts.rows]

    def utility_of(self, split: str, scores: Sequence[float]) -> float:
        """The utility of a particle with these scores on a split."""
        return self.utility.utility_of(split, scores)

    def score_mixtures(self, mixtures: npt.ArrayLike, split: str) -> list[Scores]:
        """Scores of mixtures [P, n] of the experts on each example of a split, all in one continuous batch."""
        points = torch.as_tensor(np.asarray(mixtures, dtype=np.float64))
        if self.engine_config.state == "mixture":
            return self._scores([MixtureOf(self.experts, point) for point in points], split)
        return self.score_rows([partial(self.mix, point) for point in points], split)

    def score_rows(self, rows: Sequence[Callable[[], torch.Tensor]], split: str) -> list[Scores]:
        """Scores of rows [D] on each example of a split, all in one continuous batch.

        A row is made when it is about to be served, perhaps twice, and not kept. With serve="mixture" one row is served
        at a time.
        """
        if self.engine.serve == "mixture":
            return [self.evaluator.score_model(row(), split) for row in rows]
        return self._scores([MadeRow(row) for row in rows], split)

    def mixtures_on_dev(self, mixtures: npt.ArrayLike) -> Floats:
        """[P] utilities of mixtures [P, n] on dev."""
        return self._utilities(self.score_mixtures(mixtures, "dev"))

    def rows_on_dev(self, rows: Sequence[Callable[[], torch.Tensor]]) -> Floats:
        """[P] utilities of rows [D] on dev."""
        return self._utilities(self.score_rows(rows, "dev"))

    def base_row(self) -> torch.Tensor | None:
        """[D] the base model in the experts' layout and dtype; None for plain LoRA, whose base is the adapter 0.

        Raises:
            InputError: it has other tensors than the experts.
        """
        layout = self.experts.layout
        if self.experts.kind == "lora":
            return base_row(self.experts)
        base = read_experts([self.base_folder], dtype=layout.dtype, minimum=1)
        if base.layout != layout:
            raise InputError(f"{self.base} has other tensors than the experts; use the base that they share.")
        return base.rows[0]

    def _calibrate(self) -> None:
        """Have a utility that wants it fix what it measures with, on what the experts answer to dev."""
        if self.utility.calibrate is not None:
            rows = map(self.expert_row, range(len(self.names)))
            answers = [one for row in rows for one in self.evaluator.generate(row, "dev")]
            self.utility.calibrate(self.utility.examples["dev"] * len(self.experts.names), answers)

    def _utilities(self, scores: Sequence[Scores]) -> Floats:
        return np.array([self.utility_of("dev", one) for one in scores], dtype=np.float64)

    def _scores(self, candidates: Sequence[Candidate], split: str) -> list[Scores]:
        found = self.evaluator.score_population(dict(enumerate(candidates)), split)
        return [found[index].known for index in range(len(candidates))]

    def mix(self, mixture: torch.Tensor) -> torch.Tensor:
        """The row [D] of a mixture [n] of the experts, on the CPU; an expert itself is not copied."""
        return mix_row(self.experts, mixture)

    def expert_row(self, expert: int) -> torch.Tensor:
        """The row [D] that serves an expert."""
        return self.mix(torch.eye(len(self.names))[expert])

    def population(self, swarm: Swarm) -> Population:
        """The rows of a search; in those of the experts if the experiment is for one search."""
        experts, placement = self.experts, self.placement
        config, layout, n = swarm.config, experts.layout, len(experts.names)
        check_together(config, self.engine_config)
        weights = self.engine_config.state == "weights"
        if weights and (placement is None or len(experts.room) != count_rows(config.particles)):
            placement = self._placement(config.particles, n, layout.size, layout.dtype)
            room = placement.allocate(layout.size, layout.dtype)
            experts = replace(experts, room=room)
            if swarm.first == list(range(n)):  # else its first rows are other experts
                experts = replace(experts, rows=room[:n].copy_(experts.rows))
        return Population(
            experts,
            swarm.initial_positions(),
            self.engine_config,
            self.engine.device,
            randomness=config.randomness,
            space=config.space,
            seed=config.seed,
            placement=placement,
            mixtures_served=self.engine.serve == "mixture" or self.engine.device.type != "cuda",
        )

    def loop(self, swarm: Swarm, population: Population) -> SearchLoop[Swarm]:
        """The loop of a search."""
        order = self.evaluator.difficulty_order("dev") if self.engine_config.stop_early else None
        race = None
        if self.engine_config.race:
            assert self.utility.score_range is not None
            lowest, highest = self.utility.score_range
            race = Race(swarm.config.seed, len(self.utility.examples["dev"]), highest - lowest)
        return SearchLoop(swarm, population, self.utility, order, self._policy(swarm.config), race)

    def _policy(self, config: SwarmConfig) -> Policy | None:
        """What proposes the positions of a search, if that is not its swarm. Raises InputError."""
        if config.policy == "swarm":
            return None
        n, products = len(self.names), self.expert_products
        space, gram = space_of(config.space, n), np.eye(n) if products is None else np.array(products)
        return load_policy(config.policy, Problem(n, config.particles, config.seed, space, gram, self.known))

    def search(self, config: SwarmConfig) -> SearchResult:
        """One search, of which nothing is written.

        Raises:
            InputError: the settings contradict those of the engine, or there are fewer particles than experts.
        """
        swarm, before = Swarm(config, len(self.names)), self.evaluator.spent.copy()
        history: list[dict[str, Any]] = []
        with closing(self.population(swarm)) as population:
            loop = self.loop(swarm, population)
            trial = Trial("search", loop, self.evaluator, history)
            run_alone(trial, self.evaluator)
            row = population.global_best().detach().to("cpu", copy=True)
            mixture = population.global_best_mixture()
        best, spent = swarm.global_best, self.evaluator.spent.since(before)
        assert trial.stopped is not None
        return SearchResult(row, mixture, swarm.global_best_particle, best, loop.initial, trial.stopped, history, spent)

    def check_base(self) -> None:
        """Serve the base model again, and prove that nothing of what was served is left in it.

        Raises:
            ParityError: something is.
        """
        self.engine.restore()
        if self.evaluator.parity_check is not None:
            self.evaluator.parity_check.check(None, None)

    def _check_space(self, space: str) -> None:
        """Refuse another sum than 1 where it would scale whole weights, those of the base among them."""
        experts = self.experts
        if space == "affine" or not (experts.kind == "full" or experts.whole):
            return
        what = "full checkpoints" if experts.kind == "full" else f"experts with {experts.whole[0]} trained whole"
        raise InputError(
            f"space is {quoted(space)} but {what} hold the base model's own weights, which another sum than 1 would "
            "scale; use space='affine'."
        )

    def _demand(self, particles: int, experts: int, size: int, dtype: torch.dtype) -> dict[str, Any]:
        """What placement asks of rows, and of the device they are served on."""
        here = torch.cuda.is_available() and not self.engine_config.own_processes
        demand: dict[str, Any] = {"particles": particles, "experts": experts, "size": size, "dtype": dtype}
        demand["device"] = torch.device("cuda" if here else "cpu")
        if self.engine_config.engine == "vllm":
            demand["gpu_memory_utilization"] = gpu_share(self.engine_config)
        row = size * dtype.itemsize
        demand["engine_bytes"] = self._engine_bytes(row) if demand["device"].type == "cpu" else 0
        return demand

    def _engine_bytes(self, row: int) -> int:
        """What engines and the parity check have yet to take of the host's memory for the base model's weights.

        The parity check takes those of a row as well, of so many bytes.
        """
        if self._started:
            return 0
        config = self.engine_config
        weights = sum(path.stat().st_size for path in self.base_folder.glob("*.safetensors"))
        engines = config.engines if config.cluster in (None, "local") else 0  # others are on other machines
        copies = engines * (2 if config.serve in ("merged", "auto") else 1)  # merged keeps what it writes over
        checked = config.parity_check != "off" and config.engine != "transformers"
        return weights * (copies + checked) + row * checked

    def _placement(self, particles: int, experts: int, size: int, dtype: torch.dtype) -> Placement:
        return plan_memory(self.engine_config, **self._demand(particles, experts, size, dtype), out=self.out)

    def _place(self, n: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows that begin with the experts: those of the only search, whose first positions they are, or n."""
        particles = max(self._swarm.get("particles") or n, n)
        self._choose_state(particles, n, size, dtype)
        if self._searches is not None and self.engine_config.state == "weights":
            rows = shared_rows if self.engine_config.own_processes else empty_rows
            return rows(n, size, dtype)
        self.placement = self._placement(particles, n, size, dtype)
        return self.placement.allocate(size, dtype)

    def _choose_state(self, particles: int, n: int, size: int, dtype: torch.dtype) -> None:
        """What state="auto" becomes for n experts of this size."""
        config = self.engine_config
        if config.state != "auto":
            return
        asked = {"randomness": SwarmConfig.randomness, "policy": SwarmConfig.policy} | self._swarm
        state, self.why_state = choose_state(config, asked["randomness"], asked["policy"])
        if state == "weights" and config.cluster is not None:
            raise InputError(
                f"{self.why_state}, which needs state='weights', but cluster is {quoted(config.cluster)} and has no"
                " such state; leave one of them out."
            )
        if state is None:
            others = count_rows(particles) * ((self._searches or 1) - 1) + (n if self._searches else 0)
            demand = self._demand(particles, n, size, dtype)
            demand["engine_bytes"] += others * size * dtype.itemsize
            fits_in = fits(config, **demand)
            state = "weights" if fits_in else "mixture"
            self.why_state = f"the rows of {particles} particles {'fit' if fits_in else 'do not fit'} the memory budget"
        self.engine_config = replace(config, state=state)


def say_data(utility: Utility) -> None:
    """Say how the data were understood, and what makes their scores worse measures."""
    for one in utility.data:
        say(one.line)
        for warning in one.warnings:
            say(f"Warning: {warning}", style="yellow")


def gpu_share(config: EngineConfig) -> float:
    """The share of a GPU's memory that vLLM takes."""
    return float(str(config.engine_options.get("gpu_memory_utilization", GPU_SHARE)))


def choose_state(
    config: EngineConfig, randomness: str, policy: str = "swarm"
) -> tuple[Literal["weights", "mixture"] | None, str]:
    """The state that the settings need, and why; None where either will do."""
    if config.serve == "mixture":
        return "mixture", "serve is 'mixture'"
    if config.combine == "delta":
        return "mixture", "combine is 'delta'"
    if policy != "swarm":
        return "mixture", f"policy is {quoted(policy)}"
    if randomness == "expert":
        return "mixture", "randomness is 'expert'"
    if randomness == "coordinate":
        return "weights", "randomness is 'coordinate'"
    if config.rounding != "nearest":
        return "weights", f"rounding is {quoted(config.rounding)}"
    if config.cluster is not None:
        return "mixture", f"cluster is {quoted(config.cluster)}"
    return None, ""


def check_together(config: SwarmConfig, engine_config: EngineConfig) -> None:
    """What neither of them can know alone, and what a policy needs to be installed. Raises InputError."""
    _check_mixtures(config, engine_config)
    find_policy(config.policy)
    if config.randomness == "coordinate" and engine_config.state == "mixture":
        raise InputError(
            "randomness is 'coordinate' but state='mixture' has no coordinates of weights; use state='weights'."
        )
    if config.randomness == "coordinate" and engine_config.combine == "delta":
        raise InputError(
            "randomness is 'coordinate' but combine='delta' has no coordinates of weights; use combine='factors'."
        )
    if config.randomness == "coordinate" and engine_config.rounding == "published":
        raise InputError(
            "randomness is 'coordinate' but rounding='published' is of a factor a particle; use rounding='nearest'."
        )


def check_race(utility: Utility) -> None:
    """What a race needs of a utility. Raises InputError."""
    if utility.score_range is None:
        raise InputError(
            f"race is set but the scores of {utility.name} have no known range; give the function the attribute "
            "score_range = (lowest, highest), or leave race out."
        )
    if utility.reduce is not mean:
        raise InputError(
            f"race is set but the utility of {utility.name} is not the mean of its scores; leave race out."
        )


def _check_mixtures(config: SwarmConfig, engine_config: EngineConfig) -> None:
    """What a policy and randomness="expert" need of the engine. Raises InputError."""
    placed = config.policy != "swarm"
    if not placed and config.randomness != "expert":
        return
    why = f"policy is {quoted(config.policy)}" if placed else "randomness is 'expert'"
    if engine_config.state == "weights":
        raise InputError(f"{why} but state='weights' has no coefficients of the experts; use state='mixture'.")
    if engine_config.rounding != "nearest":
        how = quoted(engine_config.rounding)
        raise InputError(f"{why} but rounding={how} is of state='weights'; use rounding='nearest'.")
    if placed and engine_config.stop_early:
        raise InputError(f"{why} but stop_early finds bounds of utilities, not utilities; leave stop_early out.")
