"""The forms in which trainers leave an adapter's tensors, in the one in which PEFT saves them today; and advice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from modelswarms_fast.errors import InputError, short

PREFIX = "base_model.model."
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_SAVED = re.compile(r"\.(base_layer|modules_to_save(\.[^.]+)?)(?=\.[^.]+$)")


def merge_advice(folder: Path, base: str) -> str:
    """How PEFT makes a checkpoint of an adapter that is more than plain LoRA."""
    return (
        "merge it into a checkpoint with PEFT and search over checkpoints: model ="
        f" AutoModelForCausalLM.from_pretrained({base!r}); model = PeftModel.from_pretrained(model,"
        f" {str(folder)!r}).merge_and_unload(); model.save_pretrained({f'{folder}-merged'!r})"
    )


def initial_advice(folder: Path) -> str:
    """How PEFT makes plain LoRA of an adapter whose start changed the base model."""
    return (
        "convert the adapter to plain LoRA where it was trained: save the model as it was before training"
        f" (save_pretrained('start')), then model.save_pretrained({f'{folder}-plain'!r},"
        " path_initial_model_for_weight_conversion='start')"
    )


def plain_names(keys: Iterable[str], file: Path, advice: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of a file's keys, the halves of LoRA and the whole tensors: key -> name.

    A half is named as PEFT saves it ("base_model.model.lm_head.lora_A.weight"), a whole tensor as in the base model
    ("lm_head.weight"). Keys may have the name of an adapter, "module." or "_orig_mod." in front, or no prefix. Raises
    InputError for any other tensor, and for several adapters in one file.
    """
    halves: dict[str, str] = {}
    whole: dict[str, str] = {}
    adapters: dict[str | None, str] = {}
    for key in sorted(keys):
        plain = key.replace("_orig_mod.", "").removeprefix("module.").removeprefix(PREFIX)
        if match := _HALF.fullmatch(plain):
            adapters.setdefault(match["adapter"], key)
            halves[key] = f"{PREFIX}{match['module']}.lora_{match['half']}.weight"
        elif "lora_" in plain:
            raise InputError(
                f"{file}: tensor {short(key)} is not the lora_A or lora_B weight of a linear layer, which is all"
                " that is"
                f" supported: {advice}"
            )
        else:
            whole[key] = _SAVED.sub("", plain)
    if len(adapters) > 1:
        first, second = list(adapters.values())[:2]
        raise InputError(f"{file} holds several adapters ({first}, {second}): save each in a folder of its own")
    seen: dict[str, str] = {}
    for key, name in (halves | whole).items():
        if name in seen:
            raise InputError(f"{file}: tensors {short(seen[name])} and {key} are the same one: export the expert again")
        seen[name] = key
    return halves, whole
