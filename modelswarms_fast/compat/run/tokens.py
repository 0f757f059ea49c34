"""Token ids that stay on the CPU when a script moves them to a GPU: the engine is in another process."""

from __future__ import annotations

from typing import Any

import torch

from modelswarms_fast.compat.client import BrokerError

CALLS = ("__call__", "apply_chat_template", "batch_encode_plus", "encode", "encode_plus", "pad")
"""What gives token ids, of a tokenizer."""


class Tokens(torch.Tensor):
    """A tensor on the CPU."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Of another number type, but on no other device."""
        left = [one for one in args if not isinstance(one, (str, int, torch.device)) or isinstance(one, bool)]
        kwargs.pop("device", None)
        moves = left or kwargs.keys() & {"dtype", "other"}
        return torch.Tensor.to(self, *left, **kwargs) if moves else self  # type: ignore[arg-type]

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        """Itself."""
        return self


class Tokenizers:
    """AutoTokenizer, whose tokenizers give `Tokens`."""

    def __init__(self, real: Any) -> None:
        """`real`: that of transformers."""
        self._real = real

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer that transformers reads. Raises BrokerError for one that would run code of its folder."""
        if kwargs.pop("trust_remote_code", False):
            raise BrokerError("evaluate.py has trust_remote_code=True, and no model's own code is run; leave it out.")
        tokenizer = self._real.from_pretrained(*args, trust_remote_code=False, **kwargs)
        kind = type(tokenizer)
        methods = {name: _staying(getattr(kind, name)) for name in CALLS if hasattr(kind, name)}
        tokenizer.__class__ = type(kind.__name__, (kind,), methods)
        return tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _staying(method: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = method(self, *args, **kwargs)
        if isinstance(found, torch.Tensor):
            return found.as_subclass(Tokens)
        for key, value in getattr(found, "data", {}).items():
            if isinstance(value, torch.Tensor):
                found.data[key] = value.as_subclass(Tokens)
        return found

    call.__doc__ = method.__doc__
    return call
