"""The slow and exact engine: transformers' generate, with LoRA applied by peft. The parity check trusts it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from modelswarms_fast.config import Serve
from modelswarms_fast.engines.checkpoint_names import tensors_in
from modelswarms_fast.engines.protocol import Completion, Request, Watch, working
from modelswarms_fast.engines.sampling import Draw
from modelswarms_fast.engines.tensor_names import auto_class, names_in_model
from modelswarms_fast.errors import InputError, short
from modelswarms_fast.weights.adapter_forms import PREFIX
from modelswarms_fast.weights.adapters import ranks_and_alphas
from modelswarms_fast.weights.base_model import cap_attention, loading
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import mix_row, row_form

BATCH = 16
LOGITS = 4096  # tokens of a forward pass that looks at continuations: each has a logit for every word there is


class _DrawnTokens(LogitsProcessor):
    """Leaves each sequence of a batch the token that is drawn for it; those without a draw as they are.

    transformers draws for a whole batch from one generator: what it draws depends on what shares the batch.
    """

    def __init__(self, draws: Sequence[Draw | None], prompts: Sequence[int]) -> None:
        """prompts: the length of each, without its padding."""
        self._draws, self._prompts = draws, prompts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores, padded = scores.clone(), max(self._prompts)
        for row, draw, prompt, ids in zip(scores, self._draws, self._prompts, input_ids, strict=True):
            if draw is not None:
                token = draw.token(row, ids[padded - prompt :])
                row.fill_(-torch.inf)
                row[token] = 0.0
        return scores


class _Finite(LogitsProcessor):
    """Notes of each sequence of a batch whether all its logits were numbers, -inf among them."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.found.append(torch.isfinite(scores.amax(dim=-1)))  # NaN, where one is NaN
        return scores

    def all(self) -> list[bool]:
        """[batch] over all steps."""
        flags: list[bool] = torch.stack(self.found).all(dim=0).tolist()
        return flags


def _contiguous(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Else torch multiplies by a copy of a frozen head for each prompt: 335 MB with a vocabulary of 262,144."""
    return (inputs[0].contiguous(), *inputs[1:])


def _adapter_names(model: Any, form: Experts) -> dict[str, str]:
    """Of an adapter's tensors, and of its modules: their names in the model that peft makes of this one."""
    own = names_in_model(model, [*(f"{module.name}.weight" for module in form.modules), *form.whole])
    found = {f"{PREFIX}{name}": f"{PREFIX}{own[name]}" for name in form.whole}
    for module in form.modules:
        path = own[f"{module.name}.weight"].removesuffix(".weight")
        found[module.name] = path
        found[module.a] = f"{PREFIX}{path}.lora_A.default.weight"
        found[module.b] = f"{PREFIX}{path}.lora_B.default.weight"
    return found


def _config(form: Experts, names: Mapping[str, str]) -> LoraConfig:
    """PEFT's config of rows whose modules have these names in the model.

    It says where the modules are, their ranks and their scaling. All else in an expert's adapter_config.json is about
    training, or has been found not to matter by the time that it is read.
    """
    modules = [replace(module, name=names[module.name]) for module in form.modules]
    whole = sorted({names[f"{PREFIX}{name}"].removeprefix(PREFIX).rpartition(".")[0] for name in form.whole})
    return LoraConfig(
        **ranks_and_alphas(modules),
        target_modules=[module.name for module in modules],
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


class TransformersEngine:
    """Serves one particle at a time from a transformers model in this process.

    A LoRA particle is applied as peft does, beside the base weights rather than merged into them; a full-weight
    one is copied into the model. Prompts are padded on the left and padding is masked, so that a completion does
    not depend on the batch beyond the rounding of the arithmetic.

    Raises:
        InputError: the base model lacks a tensor, or the layout does not fit it.
    """

    def __init__(
        self,
        base: Path,
        experts: Experts | None,
        *,
        dtype: str = "auto",
        max_model_len: int = 4096,
        device: torch.device | None = None,
        keep_base: bool = True,
    ) -> None:
        """`device` is a GPU where there is one, unless given.

        Without `keep_base`, full checkpoints cost no copy of the base model, which cannot be restored after a load.
        """
        self.slots = 1
        self.ahead = 2 * BATCH
        """Requests that keep it busy: a batch, and the next."""
        self.serve: Serve = "merged"  # one particle at a time
        self.auto_timings: dict[str, float] = {}
        self.watch: Watch | None = None
        self._waiting: dict[int, tuple[Request, int]] = {}
        self.max_model_len = max_model_len
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with loading(base):
            self.tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, padding_side="left")
            loaded: Any = auto_class(base).from_pretrained(
                base,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=False,
                output_loading_info=True,
                use_safetensors=True,
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model, info = loaded
        if missing := sorted(info["missing_keys"]):  # transformers would have made them up at random
            raise InputError(f"{base} has no tensor {missing[0]}, which its model needs; give a complete checkpoint.")
        cap_attention(model)
        # Not the model's own settings: generate() takes each that it is not given from there, such as a penalty.
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=model.generation_config.eos_token_id
        )
        adapter = experts is not None and experts.kind == "lora"
        names: dict[str, str] = {}
        if experts is not None and adapter:
            form = row_form(experts)
            names = _adapter_names(model, form)
            model = get_peft_model(model, _config(form, names), autocast_adapter_dtype=False)
        self.model: Any = model.to(self.device).eval()
        self.model.get_output_embeddings().register_forward_pre_hook(_contiguous)
        self.dtype: torch.dtype = self.model.dtype
        self._loaded = False
        self._live: dict[str, torch.Tensor] = {}
        if experts is not None:
            self._layout, self._experts = row_form(experts).layout, experts
            self._live = self._find_parameters(names, adapter=adapter)
        self._lost = not (keep_base or adapter)
        whole = {f"{PREFIX}{name}" for name in experts.whole} if experts is not None else set()
        kept = [live for name, live in self._live.items() if name in whole or not adapter]
        self._base = [] if self._lost else [(live, live.clone()) for live in kept]
        if adapter:
            self.restore()

    def _find_parameters(self, names: Mapping[str, str], *, adapter: bool) -> dict[str, torch.Tensor]:
        """Tensor name of the layout → live parameter, by its name in the model."""
        # With the buffers that a checkpoint has, such as the scale of a layer (Gemma 4).
        parameters = {
            name: one for name, one in self.model.state_dict(keep_vars=True).items() if one.is_floating_point()
        }
        if not adapter:
            named = {spec.name for spec in self._layout.specs}
            for name in [name for name in parameters if name not in named]:
                tensors = tensors_in(self.model, name, parameters[name].data)
                if tensors and name not in tensors:
                    del parameters[name]
                    parameters |= tensors
        found = {}
        for spec in self._layout.specs:
            name = names.get(spec.name, spec.name)
            if adapter and name not in parameters:  # trained whole
                path, _, kind = name.rpartition(".")
                name = f"{path}.modules_to_save.default.{kind}"
            if name not in parameters or tuple(parameters[name].shape) != spec.shape:
                raise InputError(f"{spec.name} does not fit the base model; use the base that the experts share.")
            found[spec.name] = parameters[name].data
        if not adapter:
            covered = {live.data_ptr() for live in found.values()}  # a tied head lies where the embeddings do
            if len(covered) < len(found):
                raise InputError(
                    "The experts have a head of their own, but the base model's lies in its embeddings (tied); save "
                    "the experts without lm_head.weight, or untie the base model."
                )
            for name, parameter in parameters.items():
                if parameter.data_ptr() not in covered:
                    raise InputError(
                        f"The experts have no tensor {short(name)}, which the base model has; use their base."
                    )
        return found

    def autotune(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """There is nothing to choose from."""

    def set_mode(self, mode: Serve) -> None:
        """There is one mode."""

    @torch.no_grad()
    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve the particle whose flat row [D] this is, in place."""
        if slot != 0:
            raise IndexError(f"slot {slot} of 1")
        start = time.perf_counter()
        for name, view in self._layout.views(row).items():
            self._live[name].copy_(view)
        self._loaded = True
        if self.watch is not None:
            self.watch("load", 0, start, time.perf_counter())

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] of the experts; their rows must be those that the engine started with."""
        self.load(slot, mix_row(self._experts, mixture))

    @torch.no_grad()
    def restore(self) -> None:
        """Serve the base model again, from requests with slot None. Raises RuntimeError without `keep_base`."""
        if self._loaded and self._lost:
            raise RuntimeError("without keep_base the base model is gone after a load")
        # With B = 0 an adapter adds exact zeros.
        for live in self._live.values():
            live.zero_()
        for live, base in self._base:
            live.copy_(base)
        self._loaded = False

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request, or to look at its continuation."""
        self._check(request)
        self._waiting[key] = (request, max_tokens)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion]]:
        """Complete the shortest prompts that wait and have one limit of tokens, or look at continuations, at once."""
        if not self._waiting:
            return []
        start = time.perf_counter()
        with working("transformers"):
            completions = self._generate() if self._first_is_a_prompt() else self._look()
        if self.watch is not None:
            self.watch("step", 0, start, time.perf_counter())
        return completions

    def _first_is_a_prompt(self) -> bool:
        return next(iter(self._waiting.values()))[0].continuation is None

    def _generate(self) -> list[tuple[int, Completion]]:
        max_tokens = next(iter(self._waiting.values()))[1]
        waiting = self._waiting.items()
        keys = [key for key, (one, limit) in waiting if limit == max_tokens and one.continuation is None]
        keys = sorted(keys, key=lambda key: len(self._waiting[key][0].prompt))[:BATCH]
        requests = [self._waiting.pop(key)[0] for key in keys]
        greedy = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=self.model.generation_config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        inputs = self.tokenizer.pad(
            {"input_ids": [one.prompt for one in requests]}, padding_side="left", return_tensors="pt"
        )
        inputs = inputs.to(self.device)
        drawn = [None if one.sampling is None else Draw(one.sampling) for one in requests]
        finite = _Finite()
        lengths = [len(one.prompt) for one in requests]
        processors = LogitsProcessorList([finite, *([_DrawnTokens(drawn, lengths)] if any(drawn) else [])])
        output = self.model.generate(**inputs, generation_config=greedy, logits_processor=processors)
        completions = []
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        for key, row, good in zip(keys, rows, finite.all(), strict=True):
            tokens = self._until_end(row)
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            completions.append((key, Completion(text, len(tokens), finite=good, ids=tokens)))
        return completions

    def _look(self) -> list[tuple[int, Completion]]:
        """One forward pass over prompts with their continuations, padded on the right, where nothing looks back."""
        waiting = {key: one for key, (one, _) in self._waiting.items() if one.continuation is not None}
        whole = {key: one.prompt + (one.continuation or []) for key, one in waiting.items()}
        keys = sorted(whole, key=lambda key: len(whole[key]))[:BATCH]
        while len(keys) > 1 and len(keys) * len(whole[keys[-1]]) > LOGITS:
            keys.pop()
        texts = {"input_ids": [whole[key] for key in keys]}
        inputs = self.tokenizer.pad(texts, padding_side="right", return_tensors="pt").to(self.device)
        logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        completions = []
        for key, row in zip(keys, logits, strict=True):
            del self._waiting[key]
            prompt, tokens = len(waiting[key].prompt), torch.tensor(waiting[key].continuation, device=self.device)
            log_probs = torch.log_softmax(row[prompt - 1 : len(whole[key]) - 1].float(), dim=-1)
            greedy = bool((log_probs.argmax(dim=-1) == tokens).all())
            total = float(log_probs.gather(1, tokens[:, None]).double().sum())
            completions.append((key, Completion("", len(tokens), total, greedy)))
        return completions

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests that wait."""
        for key in keys:
            self._waiting.pop(key, None)

    @torch.inference_mode()
    def log_probs(self, request: Request, top: int | None = None) -> dict[int, float]:
        """Natural log-probabilities of the next token by token id: the `top` most likely, or all."""
        self._check(request)
        logits = self.model(torch.tensor([request.prompt], device=self.device)).logits[0, -1]
        values, tokens = torch.log_softmax(logits.float(), dim=-1).topk(min(top or logits.numel(), logits.numel()))
        return dict(zip(tokens.tolist(), values.tolist(), strict=True))

    def close(self) -> None:
        """Nothing outlives an engine in this process."""

    def _check(self, request: Request) -> None:
        if (request.slot is not None) != self._loaded:
            raise RuntimeError("load() a particle for slot 0, or restore() the base model for slot None, first")

    def _until_end(self, tokens: list[int]) -> list[int]:
        """Cut after the first end-of-sequence token: the rest is padding."""
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        for index, token in enumerate(tokens):
            if token in ends:
                return tokens[: index + 1]
        return tokens
