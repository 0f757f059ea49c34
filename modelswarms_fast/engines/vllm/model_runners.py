"""Whose tokens a step has: asked of vLLM's model runner, of which there are two.

Both are told of a request by the scheduler and lay out the tokens of a step request by request, in an order of their
own. Which slot a request is for stands in the `extra_args` of its sampling parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import vllm

from modelswarms_fast.engines.vllm.relied_on import KNOWN
from modelswarms_fast.errors import InputError

Begin = Callable[[Sequence[int], "np.ndarray[Any, Any]"], None]
"""begin(slots, tokens): of each request of a step in turn, its slot (-1: the base model) and its number of tokens."""


def watch_batches(runner: Any, begin: Begin) -> None:
    """Have `begin` called before each forward pass of this model runner.

    Raises InputError: it lays out its batches in another way.
    """
    if hasattr(runner, "req_states") and hasattr(runner, "prepare_inputs"):
        _watch_second(runner, begin)
    elif hasattr(runner, "requests") and hasattr(runner, "_prepare_inputs"):
        _watch_first(runner, begin)
    else:
        raise InputError(
            f"vLLM {vllm.__version__} lays out its batches in another way ({type(runner).__module__}); use "
            f"serve='merged', or install a version that is known to work ({KNOWN})."
        )


def _watch_first(runner: Any, begin: Begin) -> None:
    """`vllm.v1.worker.gpu_model_runner`: it keeps the parameters of each request, and its batch from step to step."""
    prepare = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        params = [runner.requests[name].sampling_params for name in runner.input_batch.req_ids]
        begin([_slot(one) for one in params], num_scheduled_tokens)
        return prepare(scheduler_output, num_scheduled_tokens)

    runner._prepare_inputs = prepare_inputs


def _watch_second(runner: Any, begin: Begin) -> None:
    """`vllm.v1.worker.gpu.model_runner` (V2): it sees the parameters of a request once, when the request is new.

    A request that has lost its place in the cache is new again. The batch is made in each step.
    """
    prepare, slots = runner.prepare_inputs, dict[str, int]()

    def prepare_inputs(scheduler_output: Any, *arguments: Any) -> Any:
        if scheduler_output.scheduled_new_reqs:
            for name in slots.keys() - runner.req_states.req_id_to_index.keys():
                del slots[name]
            for new in scheduler_output.scheduled_new_reqs:
                slots[new.req_id] = _slot(new.sampling_params)
        batch = prepare(scheduler_output, *arguments)
        begin([slots[name] for name in batch.req_ids], batch.num_scheduled_tokens)
        return batch

    runner.prepare_inputs = prepare_inputs


def _slot(params: Any) -> int:
    return params.extra_args["particle"] if params.extra_args else -1
