"""`distributed_generation` and `batch_generate_text` of MoCo: its arguments and results, from engines that stay."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from modelswarms_fast.compat.fleet import Job
from modelswarms_fast.compat.moco.session import session, undisturbed
from modelswarms_fast.compat.models import base_of
from modelswarms_fast.config import COLDEST, Sampling
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.weights.base_model import read_object

MAX_RESPONSE_LENGTH: int | None = None
TEMPERATURE: float | None = None
TOP_P: float | None = None
BATCH_SIZE: int | None = None
BIG_MODEL_MODE: bool | None = None

TOP_K = 50
"""Where a model's generation_config.json names none: the default of the transformers that MoCo asks for."""
PREFILL, THOUGHT = "<begin>", "</think>"

_source: ModuleType = sys.modules[__name__]


def read_settings_from(module: ModuleType | None) -> None:
    """Read MAX_RESPONSE_LENGTH and the other settings from this module at each call; None: from this one."""
    global _source
    _source = module or sys.modules[__name__]


def update_generation_hyperparameters(
    max_response_length: int, temperature: float, top_p: float, batch_size: int, big_model_mode: bool = False
) -> None:
    """Set what `distributed_generation` uses from now on."""
    global MAX_RESPONSE_LENGTH, TEMPERATURE, TOP_P, BATCH_SIZE, BIG_MODEL_MODE
    MAX_RESPONSE_LENGTH, TEMPERATURE, TOP_P = max_response_length, temperature, top_p
    BATCH_SIZE, BIG_MODEL_MODE = batch_size, big_model_mode


def distributed_generation(
    list_of_model_name: Sequence[str],
    list_of_input_list: Sequence[list[str]],
    list_of_gpu_id: Sequence[int],
    max_response_length: int | None = None,
) -> list[list[str]]:
    """Answers of each model to each of its inputs, in the same order.

    Args:
        list_of_model_name: folders or hub ids, of adapters or full models; one may be given several times.
        list_of_input_list: the inputs of each, also none.
        list_of_gpu_id: as indices into CUDA_VISIBLE_DEVICES; without meaning on a CPU.
        max_response_length: tokens of an answer, instead of the length that was set.

    Raises:
        InputError: a model cannot be served, or nothing was set by update_generation_hyperparameters.
        EngineError: an engine failed.
    """
    if len(list_of_model_name) != len(list_of_input_list):
        raise InputError(
            f"There are {len(list_of_model_name)} models and {len(list_of_input_list)} lists of inputs; give one list "
            "for each model."
        )
    for inputs in list_of_input_list:
        if not isinstance(inputs, list):
            raise InputError(f"A list of inputs is {quoted(inputs)}; give a list of texts.")
    length = _setting("MAX_RESPONSE_LENGTH") if max_response_length is None else max_response_length
    return _generate(
        list_of_model_name,
        list_of_input_list,
        list(list_of_gpu_id),
        length,
        _setting("TEMPERATURE"),
        _setting("TOP_P"),
        _setting("BATCH_SIZE"),
    )


def batch_generate_text(
    model_name: str,
    gpu_id: int | list[int],
    input_list: list[str],
    max_response_length: int,
    temperature: float,
    top_p: float,
    batch_size: int,
) -> list[str]:
    """Answers of one model, as `distributed_generation` gives them; `gpu_id` is a list in the mode for big models."""
    devices = gpu_id if isinstance(gpu_id, list) else [gpu_id]
    return _generate([model_name], [input_list], devices, max_response_length, temperature, top_p, batch_size)[0]


def _setting(name: str) -> Any:
    value = getattr(_source, name)
    if value is None:
        raise InputError(f"{name} is not set; call update_generation_hyperparameters first.")
    return value


@undisturbed()
def _generate(
    names: Sequence[str],
    inputs: Sequence[list[str]],
    devices: list[int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
) -> list[list[str]]:
    now = session()
    jobs: list[Job] = []
    tokenizers: list[Any] = []
    for name, texts in zip(names, inputs, strict=True):
        if not texts:
            tokenizers.append(None)
            jobs.append(Job(name, [], max_tokens, []))
            continue
        folder = now.models.folder(name)
        tokenizer = now.models.tokenizer(folder)
        own = sampling_of(folder, temperature, top_p)
        prompts = prompts_of(tokenizer, texts, batch_size)
        jobs.append(Job(name, prompts, max_tokens, [own._replace(seed=seed) for seed in now.seeds(len(prompts))]))
        tokenizers.append(tokenizer)
    answers = now.fleet.generate(jobs, devices, together=bool(_source.BIG_MODEL_MODE))
    return [
        [after_thought(str(tokenizer.decode(ids, skip_special_tokens=True))) for ids in some]
        for tokenizer, some in zip(tokenizers, answers, strict=True)
    ]


def prompts_of(tokenizer: Any, inputs: Sequence[str], batch_size: int) -> list[list[int]]:
    """The token ids of inputs in the model's chat template; of a batch whose template fails, of the bare inputs."""
    prompts: list[list[int]] = []
    for first in range(0, len(inputs), batch_size):
        batch = inputs[first : first + batch_size]
        try:
            texts = [templated(tokenizer, one) for one in batch]
        except Exception:  # whatever a template raises; a tokenizer may have none
            texts = list(batch)
        ids = tokenizer(texts, truncation=True).input_ids
        prompts += [one or [tokenizer.eos_token_id] for one in ids]
    return prompts


def templated(tokenizer: Any, text: str) -> str:
    """One turn of the user, and what the answer is to begin with, if `<begin>` separates it."""
    question, _, beginning = text.partition(PREFILL)
    chat = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)) + beginning


def after_thought(text: str) -> str:
    """An answer without what a model thinks before it; any other answer as it is."""
    return text.rpartition(THOUGHT)[2].strip() if THOUGHT in text else text


def sampling_of(folder: Path, temperature: float, top_p: float) -> Sampling:
    """How this model's answers are drawn: top_k and the repetition penalty are those of its generation_config.json."""
    file = base_of(folder) / "generation_config.json"
    config = read_object(file, "download it again") if file.is_file() else {}
    if temperature:
        temperature = max(temperature, COLDEST)
    top_k, penalty = config.get("top_k", TOP_K), config.get("repetition_penalty")
    return Sampling(float(temperature), float(top_p), 0, int(top_k or 0), float(penalty or 1.0))
