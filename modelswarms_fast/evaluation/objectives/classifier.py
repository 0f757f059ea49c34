"""A transformers sequence classifier that stays in memory: the scorer of rewards and of toxicity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.weights.base_model import cap_attention

DTYPES = ("float32", "bfloat16", "float16")


class Classifier:
    """Logits of texts, from a local folder or a hub id, loaded once.

    A text longer than the model takes loses its beginning, and is counted in `truncated`. Padding and the other texts
    of a batch change logits by rounding only.

    Raises:
        InputError: no sequence classifier with safetensors weights can be loaded from `name`.
    """

    def __init__(self, name: str, *, dtype: str = DTYPES[0], device: str | None = None, batch: int = 16) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name, self.batch, self.truncated = name, batch, 0
        if name.startswith(("/", ".")) and not Path(name).is_dir():  # no hub id, as which it would be looked for
            raise InputError(f"the classifier's folder {name} does not exist; give a folder or a hub id")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, truncation_side="left", trust_remote_code=False)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:  # whatever a broken folder makes transformers raise
            why = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            raise InputError(
                f"cannot load a sequence classifier from {name} ({why}); give a folder or hub id of one with a "
                "tokenizer and safetensors weights"
            ) from error
        self.model, info = cap_attention(loaded[0]), loaded[1]
        if missing := sorted(info["missing_keys"]):  # a head that transformers would have made up at random
            raise InputError(
                f"{name} has no weights for {missing[0]}, so it is no sequence classifier; train one first"
            )
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model.to(self.device).eval()
        except Exception as error:
            raise InputError(
                f"cannot put {name} on the device {quoted(device)} ({short(error)}); give cpu or cuda"
            ) from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.config.pad_token_id is None:  # a decoder finds its last token by what is no padding
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        longest = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self._longest: int = min(longest, self.tokenizer.model_max_length)

    @property
    def labels(self) -> list[str]:
        """Names of the outputs, in order."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with those that the tokenizer adds to every text."""
        return [len(self.tokenizer(text)["input_ids"]) for text in texts]

    def logits(self, texts: Sequence[str], *, special: bool = True) -> list[list[float]]:
        """One row of logits for each text; `special`: the tokenizer adds its own tokens, as a template already did."""
        import torch

        tokens = [self.tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
        kept = [ids or [self.tokenizer.pad_token_id] for ids in tokens]
        for index, text in enumerate(texts):
            if len(tokens[index]) > self._longest:  # cut by the tokenizer, which keeps what it adds at the beginning
                self.truncated += 1
                cut = self.tokenizer(text, add_special_tokens=special, truncation=True, max_length=self._longest)
                kept[index] = cut["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: len(kept[index]))  # little padding
        found: list[list[float]] = [[]] * len(texts)
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            batch = self.tokenizer.pad({"input_ids": [kept[index] for index in part]}, return_tensors="pt")
            with torch.inference_mode():
                rows = self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).logits
            for index, row in zip(part, rows.float().tolist(), strict=True):
                found[index] = row
        return found
