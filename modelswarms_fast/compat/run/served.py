"""What a script's models are: names of models that the broker's engines serve."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from modelswarms_fast.compat.client import BrokerError, Client
from modelswarms_fast.compat.run.tokens import Tokens

Ids = Any  # a list of whole numbers: this is read by Python 3.9
HARMLESS = {
    "attn_implementation", "cache_dir", "local_files_only", "low_cpu_mem_usage", "token", "use_cache", "use_safetensors"
}  # fmt: skip
"""Arguments that change no answer, or that the broker has settings for."""
REPEATED = 100
"""Batches that a function may ask for once more while it is watched: if it waits for another answer, it waits long."""

_client: Client | None = None


class NotServed(BrokerError, AttributeError):
    """A script asks for something of a model that its engine does not have."""


class _Enough(BaseException):
    """Ends a function that is watched."""


def client() -> Client:
    """The client of this process."""
    global _client
    if _client is None:
        _client = Client()
    return _client


class Served:
    """AutoModelForCausalLM, and a model that it gives: a base model, an adapter of it, or a full model."""

    def __init__(self, name: Any, dtype: str | None) -> None:
        """Raises BrokerError if the broker cannot have it."""
        self._name, self._dtype = _place(name), dtype
        self._base: str | None = None
        self._generation: dict[str, Any] = client().find(self._name)["generation"]
        self._device = 0
        self._asked: _Asked | None = None

    @classmethod
    def from_pretrained(cls, name: Any, **given: Any) -> Served:
        """A model by its folder or hub id; it is read when an engine needs it. Raises BrokerError."""
        kinds = [given.pop(key) for key in ("torch_dtype", "dtype") if given.get(key) is not None]
        device = given.pop("device_map", None)
        if given.pop("trust_remote_code", False):
            raise NotServed("evaluate.py has trust_remote_code=True, and no model's own code is run; leave it out.")
        _only(given, "from_pretrained")
        dtype = str(kinds[0]).replace("torch.", "") if kinds else "auto"
        model = cls(name, None if dtype == "auto" else dtype)
        return model.to(device.get("") if isinstance(device, dict) else device)

    def load_adapter(self, folder: Any, *args: Any, **given: Any) -> None:
        """Be this adapter of the base model from now on. Raises BrokerError for what is none."""
        place = _place(folder)
        base = self._base or self._name
        if not client().find(place, base)["adapter"]:
            raise NotServed(f"{folder} has no adapter_config.json; give the folder of an adapter.")
        self._name, self._base = place, base

    def to(self, *args: Any, **given: Any) -> Served:
        """On the GPU of this number, in the broker's count."""
        for one in (*args, given.get("device")):
            if isinstance(one, (str, int, torch.device)):
                self._device = _number(one)
        return self

    def cuda(self, device: Any = 0) -> Served:
        """On the GPU of this number."""
        return self.to(device)

    def eval(self) -> Served:
        """Itself: nothing is trained."""
        return self

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return torch.device("cpu")

    def generate(
        self,
        inputs: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        **given: Any,
    ) -> torch.Tensor:
        """Prompts [n, length] with their answers [n, length + longest answer], as that of transformers.

        Raises BrokerError.
        """
        ids = input_ids if inputs is None else inputs
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            raise NotServed("generate takes a tensor of token ids [prompts, length]; give it one.")
        settings = {**self._generation, "do_sample": do_sample, "max_new_tokens": max_new_tokens}
        settings = {key: self._generation.get(key) if value is None else value for key, value in settings.items()}
        for key in ("temperature", "top_p", "top_k", "repetition_penalty", "pad_token_id"):
            if given.get(key) is not None:
                settings[key] = given[key]
            given.pop(key, None)
        ends = _several(settings.get("eos_token_id"))
        if given.pop("num_beams", 1) != 1:
            raise NotServed("generate has num_beams, which the engine does not have; leave it out.")
        if not set(_several(given.pop("eos_token_id", None))) <= set(ends):
            raise NotServed("generate has an eos_token_id that the model does not end with; leave it out.")
        _only(given, "generate")
        limit = settings["max_new_tokens"]
        if not isinstance(limit, int) or limit < 1:
            raise NotServed(f"generate has max_new_tokens={limit}; give a whole number from 1 on.")
        pad = settings.get("pad_token_id")
        prompts = _prompts(ids, attention_mask, pad, ends)
        found = self._answers(prompts, limit, settings)
        fill = next((one for one in (pad, *ends) if one is not None), 0)
        rows = torch.full((len(found), max([len(one) for one in found], default=0)), int(fill), dtype=ids.dtype)
        for number, one in enumerate(found):
            rows[number, : len(one)] = torch.tensor(one, dtype=ids.dtype)
        return torch.cat([ids.cpu(), rows], dim=1).as_subclass(Tokens)

    def _answers(self, prompts: list[Ids], limit: int, settings: dict[str, Any]) -> list[Ids]:
        penalty = float(settings.get("repetition_penalty") or 1.0)
        if settings["do_sample"]:
            if self._asked is not None and self._asked.watching:
                raise _Enough  # the same batch has another answer the next time
            own = [float(settings.get("temperature") or 1.0), float(settings.get("top_p") or 1.0)]
            top_k = 50 if settings.get("top_k") is None else int(settings["top_k"])
            seeds = torch.randint(2**62, (len(prompts),)).tolist()
            return self._ask(prompts, limit, [[*own, seed, top_k, penalty] for seed in seeds])
        how = [0.0, 1.0, 0, 0, penalty]
        batch = limit, penalty, tuple(map(tuple, prompts))
        if self._asked is not None:
            if self._asked.watching:
                return self._asked.note(batch)
            if batch in self._asked.answers:
                return self._asked.answers[batch]
        return self._ask(prompts, limit, [how] * len(prompts))

    def _ask(self, prompts: Sequence[Sequence[int]], limit: int, samplings: list[list[float]]) -> list[Ids]:
        job = self._job(prompts, limit, samplings)
        return [one["ids"] for one in client().generate([job], (self._device,))[0]]

    def _job(self, prompts: Sequence[Sequence[int]], limit: int, samplings: list[list[float]]) -> dict[str, Any]:
        job = {"model": self._name, "prompts": [list(one) for one in prompts], "max_tokens": limit}
        job |= {"samplings": samplings, "base": self._base, "dtype": self._dtype}
        return job

    @contextlib.contextmanager
    def at_once(self, function: Callable[[], Any]) -> Iterator[None]:
        """Answer all batches that a function asks for in one call, before it is called inside."""
        self._asked = asked = _Asked()
        try:
            nowhere = io.StringIO()
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), contextlib.suppress(_Enough):
                _watch(function)
            asked.watching = False
            batches = list(asked.seen)
            jobs = [
                self._job(prompts, limit, [[0.0, 1.0, 0, 0, penalty]] * len(prompts))
                for limit, penalty, prompts in batches
            ]
            found = client().generate(jobs, (self._device,)) if jobs else []
            for number, batch in enumerate(batches):
                asked.answers[batch] = [one["ids"] for one in found[number]]
            yield
        finally:
            self._asked = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotServed(f"evaluate.py uses {name} of a model, which is in another process; use generate of it.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises BrokerError: there are no logits."""
        raise NotServed("evaluate.py calls a model for its logits, which the engine does not give; use generate of it.")


class _Asked:
    """The batches that a function asks a model for."""

    def __init__(self) -> None:
        self.watching = True
        self.seen: dict[Any, int] = {}
        """Batch → how often."""
        self.answers: dict[Any, list[Ids]] = {}

    def note(self, batch: Any) -> list[Ids]:
        """No answers, at first."""
        self.seen[batch] = self.seen.get(batch, 0) + 1
        if self.seen[batch] > REPEATED:
            raise _Enough
        return [[] for _ in batch[-1]]


def _watch(function: Callable[[], Any]) -> None:
    """Call a function whose batches get no answers; what it makes of them counts for nothing, be it an error."""
    with contextlib.suppress(Exception):
        function()


def gathered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose batches are answered together.

    It is called twice: first to see for which batches it asks its model, and then with their answers.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        model = next((one for one in (*args, *kwargs.values()) if isinstance(one, Served)), None)
        if model is None or model._asked is not None:
            return function(*args, **kwargs)
        given = [list(one) if isinstance(one, list) else one for one in args]
        named = {key: list(one) if isinstance(one, list) else one for key, one in kwargs.items()}
        with model.at_once(lambda: function(*given, **named)):
            return function(*args, **kwargs)

    return call


def _place(name: Any) -> str:
    """A folder as other processes find it, or a hub id."""
    return os.path.abspath(name) if os.path.exists(name) else str(os.fspath(name))


def _number(device: Any) -> int:
    """The number of a GPU; 0 for any."""
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        return 0
    if isinstance(device, int):
        return device
    tail = str(device).rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _several(value: Any) -> list[int]:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _only(given: dict[str, Any], function: str) -> None:
    """Raise NotServed for arguments that an answer may depend on."""
    for name in given:
        if name not in HARMLESS and given[name] is not None:
            raise NotServed(f"evaluate.py gives {function} {name}, which the engine does not have; leave it out.")


def _prompts(ids: torch.Tensor, mask: Any, pad: Any, ends: list[int]) -> list[Ids]:
    """The tokens that a model reads of each row: of those that a mask leaves, be it the one that transformers guesses.

    It guesses where ids have the model's own padding, which does not end a text. Without a mask, padding is read.
    """
    if mask is None and pad is not None and pad not in ends:
        mask = ids.ne(pad)
    if mask is None:
        mask = torch.ones_like(ids)
    if not bool(mask[:, -1:].bool().all()):
        raise NotServed("generate has prompts that are padded on the right; set padding_side to left.")
    return [row[kept].tolist() for row, kept in ((ids[n].cpu(), mask[n].cpu().bool()) for n in range(len(ids)))]
