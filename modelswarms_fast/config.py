"""Settings of a search: frozen, and checked against each other when they are made."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from modelswarms_fast.errors import InputError

Randomness = Literal["particle", "unit", "coordinate"]
StartVelocity = Literal["random", "zero", "best"]
State = Literal["weights", "mixture"]
Serve = Literal["merged", "slots", "mixture", "auto"]
Scoring = Literal["generate", "loglikelihood"]
EngineName = Literal["vllm", "transformers"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Rounding = Literal["nearest", "stochastic"]
CheckedLoads = Literal["off", "first", "all"]

LARGEST = sys.float_info.max
"""An integer may be larger, and then is no float."""


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise InputError(sentence)


def _check_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    _check(value in allowed, f"{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}.")


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(name: str, amount: str | None) -> float:
    """Bytes of "8GB", "512 MiB" or "100 bytes"; infinity for None. Raises InputError that names the setting."""
    if amount is None:
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]+)", str(amount).strip())
    unit = ({"BYTES": 1, "B": 1} | _UNITS).get(match[2].upper()) if match else None
    count = float(match[1]) * unit if match and unit else math.inf
    if count == math.inf:  # of several hundred digits, if it is a number at all
        raise InputError(f"{name} is {amount!r}; give a number and a unit, such as '8GB' or '512MiB'.")
    return math.floor(count)


@dataclass(frozen=True, kw_only=True)
class SwarmConfig:
    """The policy of a swarm; the defaults are those of the published search (arXiv 2410.11163).

    Raises:
        InputError: a setting is out of range or contradicts another; the message names it.
    """

    particles: int
    seed: int = 0
    inertia: float = 0.4
    cognitive_coeff: float = 0.3
    social_coeff: float = 0.3
    repel_coeff: float = 0.3
    repel: bool = True
    """False leaves the global worst out of the velocity."""
    randomness: Randomness = "particle"
    """`particle`: r ~ U(0, 1), one draw a term, particle and iteration; `unit`: r = 1;
    `coordinate`: one draw a term, coordinate, particle and iteration, the classic particle swarm."""
    step_length: float = 1.0
    step_length_factor: float = 0.95
    minimum_step_length: float = 0.1
    iterations: int = 200
    """The most iterations after the initial evaluation; 0 only evaluates the initial particles."""
    patience: int = 10
    """The search stops after this many iterations without a new global best."""
    restart: bool = True
    restart_patience: float = 0.5
    """A particle restarts after restart_patience · patience iterations without a new personal best."""
    start_velocity: StartVelocity = "random"
    """`random`: toward another particle drawn at random; `best`: toward the first global best."""
    drop_k: float = 0.0
    """Probability that an iteration is not evaluated (dropK of the paper)."""
    drop_n: float = 0.0
    """Probability that a particle is not evaluated in an iteration (dropN of the paper)."""

    def __post_init__(self) -> None:
        _check(self.particles >= 2, f"particles is {self.particles}; a swarm needs at least 2.")
        _check(0 <= self.seed < 2**63, f"seed is {self.seed}; give an integer from 0 to 2**63 - 1.")
        for name in ("inertia", "cognitive_coeff", "social_coeff", "repel_coeff", "restart_patience"):
            value = getattr(self, name)
            _check(0 <= value <= LARGEST, f"{name} is {value}; give a finite number, 0 or more.")
        for name in ("step_length", "step_length_factor", "minimum_step_length"):
            value = getattr(self, name)
            _check(0 <= value <= LARGEST, f"{name} is {value}; give a finite number, 0 or more.")
        _check(
            self.inertia + self.cognitive_coeff + self.social_coeff + self.repel * self.repel_coeff > 0,
            "inertia, cognitive_coeff, social_coeff and repel_coeff are all 0; nothing would move.",
        )
        _check(self.iterations >= 0, f"iterations is {self.iterations}; give 0 or more.")
        _check(self.patience >= 1, f"patience is {self.patience}; give 1 or more.")
        for name in ("drop_k", "drop_n"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"{name} is {value}; give a probability from 0 to below 1.")
        _check_choice("randomness", self.randomness, Randomness)
        _check_choice("start_velocity", self.start_velocity, StartVelocity)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How particles are held and served.

    Raises:
        InputError: a setting is out of range or contradicts another; the message names it.
    """

    engine: EngineName = "vllm"
    serve: Serve = "merged"
    """`merged`: one particle at a time, written into the weights; `slots`: several at once, as LoRA;
    `mixture`: all at once, as coefficients of the experts, which needs state="mixture" and LoRA experts;
    `auto`: the fastest of those that state and experts allow, timed for some seconds when the search starts."""
    slots: int = 4
    """Population that one batch serves with serve="slots", or with "auto" if it takes that."""
    engines: int = 1
    """Engines on this machine, each in a process of its own with its share of the cores."""
    tensor_parallel: int = 1
    """Processes that share one engine's model, each with a part of every layer; must divide its heads."""
    state: State = "weights"
    dtype: DType = "auto"
    """Of the base model in the engine; `auto` is what its config.json says, or float32 on a CPU that is slow in it."""
    row_dtype: DType = "auto"
    """Of the rows; `auto` is the experts'."""
    rounding: Rounding = "nearest"
    """Of moved rows to bfloat16 or float16. `stochastic`: up or down at random, so that small steps are not lost."""
    max_model_len: int = 4096
    """Longest prompt plus its completion, in tokens; at most what the base model was made for."""
    max_num_seqs: int | None = None
    """Requests in one step of an engine; None: what vLLM takes, 256 on a CPU. More need more memory for their keys and
    values than it may have, and those that find none there start anew later."""
    parity_check: CheckedLoads = "first"
    """Which loads are compared with the transformers engine: none, the first, or every one."""
    host_memory: str | None = None
    """What the search's rows may take in the host's memory, such as "8GB"; None: what is free, less a reserve. More
    rows lie in a file."""
    device_memory: str | None = None
    """What they may take in a GPU's memory; None: what the engine leaves free. More rows lie in the host's."""
    spill: str | None = None
    """Folder on a disk for the file; None: the run folder, or the nearest one above it that exists."""
    stop_early: bool = False
    """Drop the examples of a particle that can change no decision of the search; needs a known range of scores."""

    def __post_init__(self) -> None:
        _check_choice("engine", self.engine, EngineName)
        _check_choice("serve", self.serve, Serve)
        _check_choice("state", self.state, State)
        _check_choice("dtype", self.dtype, DType)
        _check_choice("row_dtype", self.row_dtype, DType)
        _check_choice("rounding", self.rounding, Rounding)
        _check_choice("parity_check", self.parity_check, CheckedLoads)
        _check(self.slots >= 1, f"slots is {self.slots}; give 1 or more.")
        for name in ("engines", "tensor_parallel"):
            _check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give 1 or more.")
        _check(
            self.tensor_parallel == 1 or self.engine == "vllm",
            f"tensor_parallel is {self.tensor_parallel} but the transformers engine is one process; use engine='vllm'.",
        )
        _check(
            self.rounding == "nearest" or self.state == "weights",
            "rounding is 'stochastic' but state='mixture' rounds nothing to half types; use state='weights'.",
        )
        for name in ("host_memory", "device_memory"):
            parse_bytes(name, getattr(self, name))
        _check(self.max_model_len >= 16, f"max_model_len is {self.max_model_len}; give 16 or more.")
        _check(
            self.max_num_seqs is None or self.max_num_seqs >= 1, f"max_num_seqs is {self.max_num_seqs}; give 1 or more."
        )
        _check(
            self.max_num_seqs is None or self.engine == "vllm",
            f"max_num_seqs is {self.max_num_seqs} but the transformers engine has no such setting; use engine='vllm'.",
        )
        _check(
            self.engine == "vllm" or self.serve == "merged",
            f"serve is {self.serve!r} but the transformers engine serves one particle at a time; use engine='vllm'.",
        )
        _check(
            self.serve != "mixture" or self.state == "mixture",
            "serve is 'mixture' but state='weights' has rows to serve, not mixtures; use state='mixture' or "
            "serve='merged'.",
        )

    @property
    def own_processes(self) -> bool:
        """Whether the engines run in processes of their own, and find rows in shared memory."""
        return self.engines > 1 or self.tensor_parallel > 1
