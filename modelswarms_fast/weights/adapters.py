"""What a PEFT LoRA config means for the tensors beside it: modules, ranks, scaling; and what is refused."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.weights.adapter_forms import PREFIX, initial_advice, merge_advice

# Fields of adapter_config.json that, when set, add tensors or change the forward pass or the base model.
_MORE_THAN_LORA = ("use_dora", "lora_bias", "target_parameters", "trainable_token_indices")
_MUST_BE_OFF = (
    "use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config", "megatron_config",
)  # fmt: skip
# Initialisations that subtract from the base weights, also when PEFT loads the adapter. "lora_ga" does so only where
# training has left its gradients.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
# Of an adapter_config.json, what says something about rows and is passed on as it is, by its types.
_KEPT: dict[str, tuple[type, ...]] = {
    "base_model_name_or_path": (str,), "revision": (str,), "peft_version": (str,), "r": (int,),
    "lora_alpha": (int, float), "rank_pattern": (dict,), "alpha_pattern": (dict,), "target_modules": (str, list),
    "modules_to_save": (list,), "use_rslora": (bool,), "fan_in_fan_out": (bool,), "lora_dropout": (int, float),
}  # fmt: skip
_NARROWS = ("exclude_modules", "layers_to_transform", "layers_pattern")
_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
LONGEST_PATTERN = 10_000
"""Characters of a regular expression of an adapter."""
SECONDS = 10.0
"""That all patterns of an adapter may take to match all its modules: one of nested repeats would take for ever."""
_HALF = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear layer: weight + scaling · B A, with A [rank, in] and B [out, rank].

    `name` is as in the base model ("model.layers.0.self_attn.q_proj"), `a` and `b` are names in the layout.
    """

    name: str
    a: str
    b: str
    rank: int
    scaling: float
    ranks: tuple[int, ...] = ()
    """Of each expert of a pool, in their order; 0 for one that lacks the module. Empty outside of a pool."""

    @property
    def alpha(self) -> int | float:
        """What lora_alpha has to be for this scaling without use_rslora; whole, where it is but for its last bits."""
        alpha = self.scaling * self.rank
        return round(alpha) if abs(alpha - round(alpha)) < 1e-9 * max(1.0, abs(alpha)) else alpha


def lora_modules(
    config: Mapping[str, Any], config_file: Path, shapes: Mapping[str, tuple[int, ...]], weights_file: Path
) -> tuple[LoraModule, ...]:
    """The modules of one adapter, sorted by name, checked against the shapes of its tensors, the halves of LoRA.

    scaling = alpha / rank, or alpha / sqrt(rank) with use_rslora (arXiv 2312.03732). rank_pattern and
    alpha_pattern override r and lora_alpha for the modules that they match, as in PEFT. Raises InputError.
    """
    halves: dict[str, dict[str, str]] = {}
    for name in sorted(shapes):
        if match := _HALF.fullmatch(name):
            halves.setdefault(match["module"], {})[match["half"]] = name
    modules, until = [], time.monotonic() + SECONDS
    ranks, alphas = (_Patterns(config.get(field), until) for field in ("rank_pattern", "alpha_pattern"))
    targeted = _Targets(config.get("target_modules"), until)
    for module, tensors in sorted(halves.items()):
        if len(tensors) != 2:
            have = next(iter(tensors.values()))
            raise InputError(
                f"{weights_file}: tensor {short(have)} has no other half (lora_A, lora_B): export it again"
            )
        try:
            named = targeted(module)
            rank, alpha = int(ranks(module, config["r"])), float(alphas(module, config["lora_alpha"]))
        except TimeoutError:
            raise InputError(
                f"{config_file}: the patterns of target_modules, rank_pattern and alpha_pattern take more than"
                f" {SECONDS:g} s to match: write them without repeats of repeats"
            ) from None
        if not named:
            raise InputError(
                f"{weights_file}: tensor {short(tensors['A'])} is of a module that target_modules in"
                f" {config_file.name} does not name, so PEFT would leave it out: correct target_modules"
            )
        for half, axis in (("A", 0), ("B", 1)):
            shape = shapes[tensors[half]]
            if len(shape) != 2 or shape[axis] != rank:
                raise InputError(
                    f"{weights_file}: tensor {short(tensors[half])} has shape {short(list(shape))}, but"
                    f" {config_file.name} says rank {quoted(rank)}: correct r or rank_pattern, or export it again"
                )
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        modules.append(LoraModule(module, tensors["A"], tensors["B"], rank, scaling))
    return tuple(modules)


def plain_config(config: Mapping[str, Any], modules: Sequence[LoraModule]) -> dict[str, Any]:
    """Of a checked adapter_config.json, what says something about its tensors, as PEFT reads it.

    What only says how the adapter was trained is left out. Fields that leave out some of target_modules are replaced by
    the names of the modules.
    """
    kept = {name: config[name] for name, kinds in _KEPT.items() if type(config.get(name)) in kinds}
    if any(config.get(name) for name in _NARROWS):
        kept["target_modules"] = [module.name for module in modules]
    task = config.get("task_type")
    plain = {"peft_type": "LORA", "task_type": task if task in _TASKS else None, "bias": "none"}
    return plain | {"init_lora_weights": True} | kept


def ranks_and_alphas(modules: Sequence[LoraModule]) -> dict[str, Any]:
    """Fields of adapter_config.json that say rank and scaling of these modules: the most frequent, and patterns."""
    rank = _most_frequent(module.rank for module in modules)
    alpha = _most_frequent(module.alpha for module in modules)
    # Of the patterns that match a module the first one counts, and a name also matches those that end in it.
    longest = sorted(modules, key=lambda module: (-len(module.name), module.name))
    for every in (False, True):
        ranks = {module.name: module.rank for module in longest if every or module.rank != rank}
        others = {module.name: module.alpha for module in longest if every or module.alpha != alpha}
        ranked, scaled = _Patterns(ranks), _Patterns(others)
        if all(ranked(one.name, rank) == one.rank and scaled(one.name, alpha) == one.alpha for one in modules):
            break
    return {"r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": others, "use_rslora": False}


def _most_frequent(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Raise InputError for an adapter_config.json that is not that of plain LoRA, with the way out."""
    merge = merge_advice(file.parent, str(config.get("base_model_name_or_path") or "base"))
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type {quoted(config.get('peft_type'))} is not supported, only LORA is: {merge}")
    for field in _MORE_THAN_LORA:
        if config.get(field):
            raise InputError(f"{file}: {field} is not supported: {merge}")
    for field in _MUST_BE_OFF:
        if config.get(field):
            raise InputError(f"{file}: {field} is not supported: train the expert without it (plain LoRA)")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InputError(
            f"{file}: init_lora_weights {quoted(start)} changes the base weights, which is not supported:"
            f" {initial_advice(file.parent)}"
        )
    _check_rank(config.get("r"), "r", file)
    _check_alpha(config.get("lora_alpha"), "lora_alpha", file)
    for field, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_alpha)):
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise InputError(f"{file}: {field} is not an object of pattern and value: export the expert again")
        for key, value in patterns.items():
            check(value, f"{field}[{quoted(key)}]", file)
            _check_pattern(key, _at_the_end(key), field, file)
    target = config.get("target_modules")
    if isinstance(target, str):
        _check_pattern(target, target, "target_modules", file)


def _check_rank(value: Any, field: str, file: Path) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"{file}: {field} is {quoted(value)}, not a whole number above 0: export the expert again")


def _check_alpha(value: Any, field: str, file: Path) -> None:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # an integer may be larger than that
        raise InputError(f"{file}: {field} is {quoted(value)}, not a finite number: export the expert again")


def _check_pattern(given: str, matched: str, field: str, file: Path) -> None:
    """Raise InputError if what is matched, which is the given pattern or holds it, is no regular expression."""
    if len(given) > LONGEST_PATTERN:
        raise InputError(
            f"{file}: {field} has a pattern of {len(given):,} characters, more than {LONGEST_PATTERN:,}: shorten it"
        )
    try:
        re.compile(matched)  # what PEFT does
        regex.compile(matched)
    except (re.error, regex.error, OverflowError, RecursionError, ValueError) as error:
        raise InputError(
            f"{file}: {field} {quoted(given)} is not a regular expression ({short(error)}): correct it"
        ) from error


def _at_the_end(pattern: str) -> str:
    """What PEFT makes of the keys of rank_pattern and alpha_pattern."""
    return rf"(.*\.)?({pattern})$"


class _Patterns:
    """Values by pattern, as PEFT looks them up: that of the first pattern that matches a module's name or its end."""

    def __init__(self, patterns: Mapping[str, float] | None, until: float = math.inf) -> None:
        self._found = [(regex.compile(_at_the_end(pattern)), value) for pattern, value in (patterns or {}).items()]
        self._until = until

    def __call__(self, module: str, default: float) -> float:
        """The value for a module. Raises TimeoutError."""
        for pattern, value in self._found:
            if pattern.match(module, timeout=_left(self._until)):
                return value
        return default


class _Targets:
    """Whether PEFT adapts a module: a text is a regular expression, a list holds names or their ends."""

    def __init__(self, target: Any, until: float) -> None:
        self._every, self._until = target == "all-linear", until
        self._pattern = regex.compile(target) if isinstance(target, str) else None
        self._names = {name for name in target if isinstance(name, str)} if isinstance(target, list) else set[str]()

    def __call__(self, module: str) -> bool:
        """Whether it is. Raises TimeoutError."""
        if self._every or self._pattern is None:
            parts = module.split(".")
            return self._every or any(".".join(parts[first:]) in self._names for first in range(len(parts)))
        return self._pattern.fullmatch(module, timeout=_left(self._until)) is not None


def _left(until: float) -> float | None:
    """Seconds until a point in time, as regex takes them. Raises TimeoutError."""
    if until == math.inf:
        return None
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left
