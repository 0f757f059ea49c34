"""Names of a checkpoint's or an adapter's tensors in a model that transformers has built.

A vision-language checkpoint wraps a text model. Its layers are called in one way by the checkpoint, in another by the
model, and in a third by an adapter that was trained on the text model alone. transformers knows how it renames what it
loads; what is left is looked for in the text model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from modelswarms_fast.errors import InputError


def auto_class(base: Path) -> Any:
    """The class of transformers that loads a base model: the whole of one that wraps a text model."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    wraps = hasattr(config, "text_config") and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if wraps else AutoModelForCausalLM


def names_in_model(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Name of a tensor as given -> that of the model's parameter.

    Raises InputError for a name that fits nothing, and for two that mean one parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, str] = {}
    given: dict[str, str] = {}
    renames = None
    for name in names:
        own = name
        if name not in parameters:
            renames = renames if renames is not None else _Renames(model)
            own = next((one for one in renames.of(name) if one in parameters), "")
        if not own:
            raise InputError(f"{name} does not fit the base model; use the base that the experts share.")
        if own in given:
            raise InputError(
                f"{given[own]} and {name} are the same tensor of the base model ({own}); give experts that were trained"
                " on the same class of model, the whole one or its text model alone."
            )
        found[name], given[own] = own, name
    return found


class _Renames:
    """What a name may be in a model that has no parameter of that name."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        self._renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
        self._prefix = model.base_model_prefix
        self._meta = dict.fromkeys(name for name, _ in model.named_parameters(remove_duplicate=False))
        text = model.get_decoder()
        self._text = next((path for path, module in model.named_modules() if module is text), "")
        self._text_prefix = f"{getattr(text, 'base_model_prefix', '')}."

    def of(self, name: str) -> tuple[str, str]:
        """As transformers renames it on loading, and as a tensor of the text model alone."""
        from transformers.core_model_loading import rename_source_key

        renamed, _ = rename_source_key(name, self._renamings, [], self._prefix, self._meta)
        return renamed, f"{self._text}.{name.removeprefix(self._text_prefix)}"
