"""Put this package's functions in the place of MoCo's, and MoCo's back."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from types import ModuleType
from typing import Any, NamedTuple

from modelswarms_fast.compat.moco import generation, session
from modelswarms_fast.compat.moco.merging import lora_merge
from modelswarms_fast.compat.moco.session import Files
from modelswarms_fast.compat.moco.swarm import Swarm
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import InputError, short

PACKAGE = "model_collaboration"
GENERATION, SWARM, EVAL = f"{PACKAGE}.method.distributed_generation", f"{PACKAGE}.utils.swarm", f"{PACKAGE}.data.eval"
GRAPHS = f"{PACKAGE}.method.text_heterogeneous_swarms"
SFT, DPO = f"{PACKAGE}.utils.distributed_sft", f"{PACKAGE}.utils.distributed_dpo"
LOGITS = f"{PACKAGE}.utils.logit_arithmetic"


class _Place(NamedTuple):
    """A function of MoCo's, by the arguments that are known, and what comes in its place."""

    module: str
    name: str
    arguments: str
    """As `inspect.signature` writes them without annotations; empty: not looked at."""
    put: Callable[[Any], Any]
    """Makes what comes in its place of what is there."""
    needed: bool = True
    """Whether a module that cannot be imported is an error; else it is passed over."""


def _instead(ours: Any) -> Callable[[Any], Any]:
    return lambda theirs: ours


def _releasing(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with the memory of our engines free."""

    @functools.wraps(theirs)
    def released(*arguments: Any, **named: Any) -> Any:
        session.release()
        return theirs(*arguments, **named)

    return released


def _scoring(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with the memory of our engines free where it loads a model of its own."""
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def scored(*arguments: Any, **named: Any) -> Any:
        if signature.bind(*arguments, **named).arguments.get("task_type") == "generation_diversity":
            session.release()
        return theirs(*arguments, **named)

    return scored


_TRAINING = (
    "list_of_model_names, {}, list_of_gpu_ids, list_of_output_model_paths, batch_size=1, "
    "gradient_accumulation_steps=16, learning_rate=1e-{}, epoch={}"
)
PLACES = (
    _Place(
        GENERATION,
        "distributed_generation",
        "list_of_model_name, list_of_input_list, list_of_gpu_id, max_response_length=None",
        _instead(generation.distributed_generation),
    ),
    _Place(
        GENERATION,
        "batch_generate_text",
        "model_name, gpu_id, input_list, max_response_length, temperature, top_p, batch_size",
        _instead(generation.batch_generate_text),
    ),
    _Place(
        GENERATION,
        "batch_generate_text_with_score",
        "model_name, gpu_id, input_list, max_response_length, temperature, top_p, batch_size",
        _releasing,
    ),
    _Place(
        SWARM,
        "Swarm",
        "swarm_base_path, model_paths, base_model, fast_merge, starting_velocity_mode, weight_randomness, inertia, "
        "cognitive_coeff, social_coeff, repel_coeff, step_length, repel_term, step_length_factor, "
        "minimum_step_length, gpus, patience, restart_patience",
        _instead(Swarm),
    ),
    _Place(
        SWARM,
        "lora_merge",
        "weights, lora_name_list, output_path, gpu_id, directly_load_safetensors=0, base_model=None",
        _instead(lora_merge),
    ),
    _Place(
        EVAL,
        "load_reward_model",
        "gpu_id=0, model_name='Skywork/Skywork-Reward-Llama-3.1-8B-v0.2'",
        _releasing,
    ),
    _Place(EVAL, "general_verifier_score", "task, split, outputs, ratio=1.0, id_list=None", _releasing),
    _Place(
        EVAL, "get_scores", "task, task_type, split, outputs, ratio=1.0, return_output=False, id_list=None", _scoring
    ),
    _Place(SFT, "distributed_sft", _TRAINING.format("list_of_sft_data_paths", "05", 3), _releasing, needed=False),
    _Place(DPO, "distributed_dpo", _TRAINING.format("list_of_dpo_data_paths", "06", 1), _releasing, needed=False),
    _Place(
        LOGITS,
        "LogitArithmetic",
        "model_names, model_devices, tokenizer, system_prompt=None, model_kwargs=None",
        _releasing,
        needed=False,
    ),
    # Threads instead of processes: the engines are here.
    _Place(GRAPHS, "Pool", "", _instead(ThreadPool), needed=False),
)
METHODS = {
    "update": "self, scores", "get_model_paths": "self", "get_global_best_path": "self", "clean_up": "self"
}  # fmt: skip

_before: list[tuple[ModuleType, str, Any]] = []
"""Module, name, and what was there."""


def patch(settings: EngineConfig | None = None, *, files: Files = "end", seed: int = 0) -> None:
    """Have MoCo generate, merge and move models with this package, until `unpatch`.

    Args:
        settings: of the engines; by default vLLM in bfloat16, with prompts and answers of 16,384 tokens together.
        files: whether positions of a swarm are written at the "end" or after "every" move.
        seed: of drawn answers.

    Raises:
        InputError: MoCo cannot be imported, or a function that would be replaced has other arguments than those that
            are known; nothing is replaced then.
    """
    unpatch()
    found = []
    for place in PLACES:
        module = _module(place)
        if module is not None:
            _check(place, module)
            found.append((place, module))
    session.configure(settings, files, seed)
    generation.read_settings_from(sys.modules[GENERATION])
    for place, module in found:
        theirs = getattr(module, place.name)
        ours = place.put(theirs)
        # Methods may have imported it by its name already.
        for other in [one for name, one in sys.modules.items() if name.split(".")[0] == PACKAGE]:
            if other is module or (place.name != "Pool" and vars(other).get(place.name) is theirs):
                _before.append((other, place.name, theirs))
                setattr(other, place.name, ours)


def unpatch() -> None:
    """Put back what `patch` replaced; the engines end, and weights that are held are written."""
    while _before:
        setattr(*_before.pop())
        if not _before:
            generation.read_settings_from(None)
            session.close()


def _module(place: _Place) -> ModuleType | None:
    try:
        return importlib.import_module(place.module)
    except Exception as error:  # whatever what it imports raises
        if not place.needed:
            return None
        raise InputError(
            f"{place.module} cannot be imported ({type(error).__name__}: {short(error)}); install MoCo, or run this in "
            "the folder of its clone."
        ) from error


def _check(place: _Place, module: ModuleType) -> None:
    """Raise InputError if the function is not the one that is known."""
    known = {place.name: place.arguments}
    if place.name == "Swarm":
        known |= {f"Swarm.{name}": arguments for name, arguments in METHODS.items()}
    for name, arguments in known.items():
        theirs: Any = module
        for part in name.split("."):
            theirs = getattr(theirs, part, None)
        if theirs is None:
            raise InputError(
                f"{place.module} has no {name}; nothing was replaced. Use the MoCo that this was made for."
            )
        if not arguments:
            continue
        found = ", ".join(
            str(one.replace(annotation=inspect.Parameter.empty))
            for one in inspect.signature(theirs).parameters.values()
        )
        if found != arguments:
            raise InputError(
                f"{place.module}.{name} takes ({found}), and ({arguments}) is known; nothing was replaced. Use a MoCo "
                "that has it."
            )
