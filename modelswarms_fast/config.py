"""Settings of a search: frozen, and checked against each other when they are made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.arguments import LAST_SEED, check_fields, check_path, check_range

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Randomness = Literal["particle", "unit", "coordinate", "expert"]
Space = Literal["affine", "scaled", "free"]
StartVelocity = Literal["random", "zero", "best"]
State = Literal["auto", "weights", "mixture"]
Combine = Literal["factors", "delta"]
Serve = Literal["merged", "slots", "mixture", "auto"]
Scoring = Literal["generate", "loglikelihood"]
EngineName = Literal["vllm", "transformers"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Rounding = Literal["nearest", "stochastic", "published"]
CheckedLoads = Literal["off", "first", "all"]
Choose = Literal["best", "confirm", "posterior", "shrink"]

LARGEST = 1_000_000
"""Bound of weights, step lengths, particles and iterations: far above any use, far below an overflow."""
LARGEST_COEFFICIENT = 1.5
"""Bound of each coefficient in the space `free`."""
SCALES = (0.5, 2.0)
"""Bounds of the sum of coefficients in the space `scaled`."""
POLICIES = ("swarm", "cma-es", "guided")
"""Policies by name; others are classes."""
LONGEST = 2**31 - 1
"""Bound of numbers of tokens and of examples, which engines hold in 32 bits."""
MOST_ENGINES = 1024
"""Bound of engines, and of the processes of each."""


def fields_of(kind: type[DataclassInstance], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of these settings the fields of a dataclass, and the rest."""
    names = {one.name for one in fields(kind)}
    return {k: v for k, v in settings.items() if k in names}, {k: v for k, v in settings.items() if k not in names}


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise InputError(sentence)


def _check_range(config: object, low: float, high: float, *names: str) -> None:
    """Refuse fields outside of a range in which the arithmetic holds."""
    for name in names:
        check_range(name, getattr(config, name), low, high)


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(name: str, amount: str | None) -> float:
    """Bytes of "8GB", "512 MiB" or "100 bytes"; infinity for None. Raises InputError that names the setting."""
    if amount is None:
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]+)", str(amount).strip())
    unit = ({"BYTES": 1, "B": 1} | _UNITS).get(match[2].upper()) if match else None
    count = float(match[1]) * unit if match and unit else math.inf
    if count == math.inf:  # of several hundred digits, if it is a number at all
        raise InputError(f"{name} is {quoted(amount)}; give a number and a unit, such as '8GB' or '512MiB'.")
    return math.floor(count)


class Budget(NamedTuple):
    """How much a search may take."""

    amount: float
    unit: Literal["evaluations", "prompts", "minutes"]


def parse_budget(given: int | str) -> Budget:
    """Of "200" evaluations, "20000p" prompts or "30m" minutes. Raises InputError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([pm]?)", str(given).strip())
    unit: Literal["evaluations", "prompts", "minutes"] = "evaluations"
    if match and match[2]:
        unit = "prompts" if match[2] == "p" else "minutes"
    amount = float(match[1]) if match else 0.0
    if not 0 < amount <= LONGEST or (unit != "minutes" and amount != int(amount)):
        raise InputError(f"budget is {quoted(given)}; give evaluations, prompts or minutes: 200, 20000p or 30m.")
    return Budget(amount, unit)


class Sampling(NamedTuple):
    """How an answer is drawn, where it is not taken greedily."""

    temperature: float
    """Logits are divided by it; from `COLDEST` on. 0: the likeliest token is taken."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn."""
    seed: int = 0
    """From 0 to 2**63 - 1."""
    top_k: int = 0
    """Only so many of the likeliest tokens are drawn; 0: of all. Before top_p."""
    repetition_penalty: float = 1.0
    """Makes tokens that the prompt or the answer has less likely: logits above 0 are divided by it, others multiplied.

    Engines of one model only."""


COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures of drawn answers; vLLM divides by no less."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """How an objective reads its examples and asks for answers.

    Raises:
        InputError: a setting is out of range; the message names it.
    """

    limit_dev: int | None = None
    """Use only the first N examples of dev."""
    limit_test: int | None = None
    """Use only the first N examples of test."""
    max_tokens: int | None = None
    """Most new tokens of an answer; by default the task's own limit."""
    scoring: Scoring = "generate"
    """Generate answers, or compare the likelihoods of given ones, where the task can."""
    temperature: float | None = None
    """Temperature at which answers are drawn, 0 for the likeliest tokens; by default the task's own, else 0.

    0, or from 0.01 to 100."""
    top_p: float | None = None
    """Draw only from the likeliest tokens that together have this probability; by default the task's own, else 1.

    Above 0, at most 1. It needs a temperature above 0."""
    samples: int | None = None
    """Answers that are drawn for each example, whose mean score counts; by default the task's own number, else 1.

    At least 1. More than 1 need a temperature above 0."""
    pass_k: int | None = None
    """Score an example by pass@k: the chance that of k answers one has the score 1, estimated from its samples.

    From 1 to the number of samples. The scores of the task must lie from 0 to 1."""
    sample_seed: int = 0
    """Seed of drawn answers.

    From 0 to 2**63 - 1. The same seed, weights and example give the same answers."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Setting of the objective as KEY=VALUE; given once for each."""
    map: Mapping[str, str] = field(default_factory=dict)
    """Name of a field that the task knows, and the file's name for it, as in question=prompt; given once for each.

    A dot leads into an object: question=doc.text. Several names with commas make a list: choices=opa,opb,opc."""
    dev_split: str | None = None
    """The file's name of the examples that steer the search; by default dev, validation or train."""
    test_split: str | None = None
    """The file's name of the examples for the end; by default test or validation.

    The same name as dev_split divides that split at random."""
    split_seed: int = 0
    """Seed by which a file with one split is divided into dev and test.

    Dev gets 40 % of the examples, at most 200."""
    chat: str | None = None
    """Send prompts in a chat template: the base model's own (base), or that of a .jinja file.

    Each prompt is the user's message, the beginning of the answer follows it, and "thinking" is off."""
    system: str | None = None
    """System message before each prompt; needs chat."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_range(self, 1, LONGEST, "limit_dev", "limit_test", "max_tokens")
        _check_range(self, 1, LARGEST, "samples", "pass_k")
        _check_range(self, 0, LAST_SEED, "sample_seed", "split_seed")
        heat = self.temperature or 0.0
        _check(
            heat == 0 or COLDEST <= heat <= HOTTEST,
            f"temperature is {quoted(self.temperature)}; give 0, or a number from {COLDEST:g} to {HOTTEST:g}.",
        )
        _check(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p is {quoted(self.top_p)}; give a number above 0, at most 1.",
        )
        _check(self.chat != "", "chat is empty; give 'base', or a .jinja file.")
        _check(
            self.system is None or self.chat is not None,
            "system is given without chat, so no message would hold it; give --chat too.",
        )


@dataclass(frozen=True, kw_only=True)
class SwarmConfig:
    """How particles move and when a search stops; the defaults are those of the published search (arXiv 2410.11163).

    Raises:
        InputError: a setting is out of range or contradicts another; the message names it.
    """

    particles: int
    """Number of particles; a search has one for each expert unless told otherwise.

    At least 2, at least as many as experts, and at most 1,000,000. Those beyond the experts start between or beyond two
    others."""
    policy: str = "swarm"
    """What proposes the next positions: the published swarm, cma-es, guided, or a class of yours as module:Class.

    Any but `swarm` places particles as mixtures of the experts, for which it needs state="mixture"; restarts, inertia
    and what else moves the swarm has no effect on them. `cma-es` needs the library cmaes, `guided` scikit-learn."""
    space: Space = "affine"
    """What coefficients a mixture may have: of sum 1 (affine), of a sum from 0.5 to 2 (scaled), or any (free).

    `free`: each from -1.5 to 1.5. `scaled` and `free` need LoRA experts. `scaled` is for other policies than `swarm`,
    which needs randomness="expert" to leave a sum of 1 in `free`."""
    seed: int = 0
    """Seed of all random draws.

    From 0 to 2**63 - 1. The same seed and settings give the same search."""
    inertia: float = 0.4
    """Weight of a particle's last velocity.

    From 0 to 1,000,000. Only the ratio of the four weights matters: they are divided by their sum."""
    cognitive_coeff: float = 0.3
    """Weight of the pull toward the particle's own best position.

    From 0 to 1,000,000."""
    social_coeff: float = 0.3
    """Weight of the pull toward the best position of all particles.

    From 0 to 1,000,000."""
    repel_coeff: float = 0.3
    """Weight of the push away from the worst position of all particles.

    From 0 to 1,000,000."""
    repel: bool = True
    """Push particles away from the worst position of all.

    Without it, repel_coeff has no effect."""
    randomness: Randomness = "particle"
    """What is drawn at random: a factor a term and particle, also for each coordinate or expert, or nothing (unit).

    `particle`: a factor from 0 to 1 for each of the four terms of each particle, drawn anew in each iteration.
    `coordinate`: the same for each coordinate, as in the classic particle swarm; needs state="weights".
    `expert`: the same for each expert's coefficient; needs state="mixture". In the space `affine` the sum stays 1: what
    a velocity would change of it is taken from all coefficients alike.
    `unit`: all factors are 1."""
    step_length: float = 1.0
    """Share of its velocity that a particle moves in the first iteration.

    From 0 to 1,000,000."""
    step_length_factor: float = 0.95
    """Factor of the step length from one iteration to the next.

    From 0 to 1; 1 keeps the step length."""
    minimum_step_length: float = 0.1
    """Step length that is not gone below.

    From 0 to 1,000,000."""
    iterations: int = 200
    """Most iterations after the initial evaluation; 0 only evaluates the initial particles.

    From 0 to 1,000,000."""
    patience: int = 10
    """Iterations without a new global best after which the search stops.

    From 1 to 1,000,000."""
    restart: bool = True
    """Send a particle that finds nothing new back to its own best position, with velocity 0."""
    restart_patience: float = 0.5
    """Iterations without a new personal best after which a particle restarts, as a share of patience.

    From 0 to 1,000,000."""
    start_velocity: StartVelocity = "random"
    """First velocity: toward another particle drawn at random, zero, or toward the first global best."""
    drop_k: float = 0.0
    """Probability that an iteration is not evaluated.

    From 0 to below 1. Called dropK in the paper. Such an iteration keeps the
    utilities of the one before."""
    drop_n: float = 0.0
    """Probability that a particle is not evaluated in an iteration.

    From 0 to below 1. Called dropN in the paper."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check(self.particles >= 2, f"particles is {quoted(self.particles)}; a swarm needs at least 2.")
        _check_range(self, 0, LAST_SEED, "seed")
        _check_range(self, 0, LARGEST, "particles", "inertia", "cognitive_coeff", "social_coeff", "repel_coeff")
        _check_range(self, 0, LARGEST, "restart_patience", "step_length", "minimum_step_length", "iterations")
        _check_range(self, 0, 1, "step_length_factor")
        _check_range(self, 1, LARGEST, "patience")
        _check(
            self.inertia + self.cognitive_coeff + self.social_coeff + self.repel * self.repel_coeff > 0,
            "inertia, cognitive_coeff, social_coeff and repel_coeff are all 0; nothing would move.",
        )
        for name in ("drop_k", "drop_n"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"{name} is {quoted(value)}; give a probability from 0 to below 1.")
        self._check_policy()

    def _check_policy(self) -> None:
        _check(
            self.policy in POLICIES or ":" in self.policy,
            f"policy is {quoted(self.policy)}; choose {', '.join(POLICIES)}, or give a class as module:Class.",
        )
        if self.policy == "swarm":
            _check(
                self.space != "scaled",
                "space is 'scaled' but policy='swarm' moves between positions whose coefficients sum to 1; use "
                "space='affine', or another policy.",
            )
            _check(
                self.space != "free" or self.randomness == "expert",
                "space is 'free' but policy='swarm' leaves a sum of 1 only with randomness='expert'; use that, or "
                "another policy.",
            )
            return
        _check(
            self.randomness != "coordinate",
            f"randomness is 'coordinate' but policy={quoted(self.policy)} places mixtures, not weights; use "
            "randomness='particle'.",
        )
        for name in ("drop_k", "drop_n"):
            _check(
                getattr(self, name) == 0,
                f"{name} is {getattr(self, name)} but policy={quoted(self.policy)} needs the utility of every position;"
                f" leave {name} out.",
            )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How particles are held in memory and served.

    Raises:
        InputError: a setting is out of range or contradicts another; the message names it.
    """

    engine: EngineName = "vllm"
    """What generates: vLLM, or transformers, which is slow, exact and needs no vLLM."""
    serve: Serve = "merged"
    """How particles are served: one at a time in the weights, several as LoRA, all as mixtures, or the fastest (auto).

    `merged`: one particle at a time, written into the weights of the base model.
    `slots`: several at once, as LoRA adapters; needs LoRA experts.
    `mixture`: all at once, as coefficients of the experts; needs state="mixture" and LoRA experts.
    `auto`: the fastest of those that state and experts allow, timed for some seconds when the search starts."""
    slots: int = 4
    """Particles that one batch serves with slots, or with auto if it takes slots.

    From 1 to 1,000,000."""
    engines: int = 1
    """Number of engines, each in its own process with its share of the cores or GPUs, on this machine or a cluster.

    From 1 to 1,024."""
    cluster: str | None = None
    """Ray cluster for the engines: of this machine (local), that of RAY_ADDRESS (auto), or HOST:PORT of a head node.

    By default the engines are processes of this machine, without Ray. Particles travel as coefficients of the experts,
    so it needs state="mixture", which state="auto" becomes."""
    tensor_parallel: int = 1
    """Number of processes that share one engine's model, each with a part of every layer.

    From 1 to 1,024; it must divide the number of attention heads. vLLM only."""
    state: State = "auto"
    """What is kept of a particle: its weights, or its coefficients of the experts (mixture).

    `weights`: all numbers of its adapter or checkpoint, moved in place by the fused update.
    `mixture`: one number an expert, which takes the least memory.
    `auto`: weights where the rows fit the memory budget, else mixture."""
    combine: Combine = "factors"
    """What of LoRA experts is mixed: their factors A and B, each by itself, or their update matrices (delta).

    `factors`: (Σ aᵢ Bᵢ)(Σ aⱼ Aⱼ), as published: the rank of one expert, and cross terms between them.
    `delta`: Σ aⱼ Bⱼ Aⱼ: no cross terms, and the rank of all experts together; state="mixture", and not with slots."""
    export_rank: int | None = None
    """Rank to which the winner of combine="delta" is cut by SVD when it is exported; by default nothing is cut.

    At least 1. The error is in summary.json and in the README.md of global_best/, and what is tested is the cut one."""
    dtype: DType = "auto"
    """Number type of the base model in the engine.

    `auto`: what its config.json says, or float32 on a CPU that is slow in that type."""
    row_dtype: DType = "auto"
    """Number type of the particles' weights; auto: that of the experts, or the widest if they have several."""
    rounding: Rounding = "nearest"
    """How moved weights are rounded to bfloat16 or float16.

    `stochastic`: up or down at random, so that steps too small for the type are not lost on average.
    `published`: after each difference, product and sum, as the published code does, which keeps them in files."""
    max_model_len: int = 4096
    """Longest prompt plus its completion, in tokens.

    At least 16, and at most what the base model was made for."""
    max_num_seqs: int | None = None
    """Most requests in one step of vLLM; by default vLLM's own limit.

    At least 1. More requests need more memory for keys and values; those that find none start again later."""
    engine_options: Mapping[str, object] = field(default_factory=dict)
    """Option of vLLM by its own name, as in gpu_memory_utilization=0.6; given once for each.

    In Python and in files a mapping. It overrides what is set here; an option on which loading particles relies is
    refused."""
    parity_check: CheckedLoads = "first"
    """Which loads are compared with the transformers engine: none (off), the first, or all."""
    host_memory: str | None = None
    """Most memory that particles may take on the host, such as 8GB; by default what is free, less a reserve.

    A number and a unit: bytes, KB, MB, GB, TB, KiB, MiB, GiB or TiB. What has no room lies in a file."""
    device_memory: str | None = None
    """Most memory that particles may take on the GPU, such as 8GB; by default what the engine leaves free.

    What has no room lies on the host."""
    spill: str | None = None
    """Folder for the file of what has no room in memory; by default the run folder.

    It should be on a fast disk. If the run folder does not exist yet, the nearest folder above it is taken."""
    stop_early: bool = False
    """Skip examples of a particle once they can change no decision of the search.

    The search takes the same steps. The objective must have a known range of scores."""
    race: bool = False
    """Stop a particle that a paired test says is worse than the global best, and estimate its utility.

    At most 5 % of the particles that are as good as the best are stopped. The test is at 20, 40, 80, … examples. The
    objective must have a known range of scores, and their mean as utility."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_range(self, 1, LARGEST, "slots", "max_num_seqs", "export_rank")
        _check_range(self, 1, MOST_ENGINES, "engines", "tensor_parallel")
        _check_range(self, 16, LONGEST, "max_model_len")
        check_path("spill", self.spill)
        _check(
            self.tensor_parallel == 1 or self.engine == "vllm",
            f"tensor_parallel is {self.tensor_parallel} but the transformers engine is one process; use engine='vllm'.",
        )
        _check(
            self.rounding == "nearest" or self.state != "mixture",
            f"rounding is {quoted(self.rounding)} but state='mixture' rounds nothing to half types; use"
            " state='weights'.",
        )
        self._check_combine()
        _check(
            not (self.race and self.stop_early),
            "race is set but stop_early stops particles by bounds, not by a test; leave one of them out.",
        )
        _check(self.cluster != "", "cluster is empty; give local, auto or HOST:PORT.")
        _check(
            self.cluster is None or self.state != "weights",
            f"cluster is {quoted(self.cluster)} but state='weights' keeps its rows on one machine; use"
            " state='mixture'.",
        )
        for name in ("host_memory", "device_memory"):
            parse_bytes(name, getattr(self, name))
        _check(
            self.max_num_seqs is None or self.engine == "vllm",
            f"max_num_seqs is {self.max_num_seqs} but the transformers engine has no such setting; use engine='vllm'.",
        )
        _check(
            not self.engine_options or self.engine == "vllm",
            f"engine_options has {quoted(next(iter(self.engine_options), ''))} but the transformers engine takes none; "
            "use engine='vllm'.",
        )
        _check(
            self.engine == "vllm" or self.serve == "merged",
            f"serve is {quoted(self.serve)} but the transformers engine serves one particle at a time; use"
            " engine='vllm'.",
        )
        _check(
            self.serve != "mixture" or self.state != "weights",
            "serve is 'mixture' but state='weights' has rows to serve, not mixtures; use state='mixture' or "
            "serve='merged'.",
        )

    def _check_combine(self) -> None:
        delta = self.combine == "delta"
        _check(
            not delta or self.state != "weights",
            "combine is 'delta' but state='weights' moves A and B each by itself; use state='mixture'.",
        )
        _check(
            not delta or self.rounding == "nearest",
            f"rounding is {quoted(self.rounding)} but combine='delta' moves no weights to round; use"
            " combine='factors'.",
        )
        _check(
            not delta or self.serve != "slots",
            "serve is 'slots' but combine='delta' needs the rank of all experts together, which slots do not have; use "
            "serve='merged' or serve='mixture'.",
        )
        if self.export_rank is not None:
            _check(
                delta,
                f"export_rank is {self.export_rank} but combine='factors' exports the experts' own rank; use "
                "combine='delta'.",
            )

    @property
    def own_processes(self) -> bool:
        """Whether the engines run in processes of their own, and find rows in shared memory."""
        return self.engines > 1 or self.tensor_parallel > 1 or self.cluster is not None
