"""What a script gets when it imports a module of the folder `shims/`, which is before all others on its path."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from modelswarms_fast.compat.client import BrokerError

SHIMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shims")
MERGE = ("weights", "lora_name_list", "output_name", "gpu_id", "directly_load_safetensors")
"""The parameters of model_swarm's lora_merge."""


def own(name: str) -> ModuleType:
    """The module of this name that the script would have without `shims/`. Raises ImportError."""
    sys.modules.pop(name, None)
    sys.path.remove(SHIMS)
    try:
        spec = importlib.util.find_spec(name)
    finally:
        sys.path.insert(0, SHIMS)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evaluation(name: str) -> None:
    """The user's evaluate.py, whose models are the broker's."""
    from modelswarms_fast.compat.run.served import Served, gathered
    from modelswarms_fast.compat.run.tokens import Tokenizers

    module = own(name)
    if not hasattr(module, "AutoModelForCausalLM"):
        raise BrokerError(
            f"{module.__file__} has no AutoModelForCausalLM, which is where models are served; import it from "
            "transformers by this name."
        )
    names = vars(module)
    names["AutoModelForCausalLM"] = Served
    if "AutoTokenizer" in names:
        names["AutoTokenizer"] = Tokenizers(names["AutoTokenizer"])
    for key, value in list(names.items()):
        if key.startswith("batch_generate") and inspect.isfunction(value):
            names[key] = gathered(value)


def merging(name: str) -> None:
    """The user's merge.py, whose lora_merge is ours. Raises BrokerError where it is another function by now."""
    module = own(name)
    theirs = vars(module).get("lora_merge")
    found = inspect.signature(theirs).parameters if callable(theirs) else None
    if found is None or tuple(found) != MERGE:
        has = "no lora_merge" if found is None else f"lora_merge({', '.join(found)})"
        raise BrokerError(
            f"{module.__file__} has {has}, and lora_merge({', '.join(MERGE)}) is what runs here; give it these "
            "parameters, and other functions other names."
        )
    default = found[MERGE[-1]].default
    vars(module)["lora_merge"] = merge_with(0 if default is inspect.Parameter.empty else default)


def merge_with(directly: Any) -> Callable[..., Any]:
    """lora_merge, by the broker."""
    from modelswarms_fast.compat.run.served import client

    def lora_merge(
        weights: Any, lora_name_list: Any, output_name: Any, gpu_id: Any, directly_load_safetensors: Any = directly
    ) -> Any:
        """Write the weighted sum of adapters to a folder; its tensors, unless it was summed in float32."""
        models = [os.fspath(one) for one in lora_name_list]
        client().merge([float(one) for one in weights], models, os.fspath(output_name), bool(directly_load_safetensors))
        if not directly_load_safetensors:
            return None
        from safetensors.torch import load_file

        return load_file(os.path.join(output_name, "adapter_model.safetensors"))

    lora_merge.__module__ = "merge"
    lora_merge.__qualname__ = "lora_merge"
    return lora_merge


class Missing(ModuleType):
    """A package that is not installed. Its classes can be made; its functions cannot be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An object, of a class; as classes are written with a capital letter."""
        package, _, rest = self.__name__.partition(".")
        if rest.rpartition(".")[2][:1].islower():
            raise ImportError(f"{self.__name__} is called, and {package} is not installed; install it.")
        return self


class Silent(ModuleType):
    """A package that does nothing, whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Silent(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Itself."""
        return self


class Once(Silent):
    """tenacity: a function that is to be tried again is called once."""

    @staticmethod
    def retry(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Leaves a function as it is."""
        return lambda function: function


def package(
    name: str, kind: type[ModuleType] = Missing, inside: tuple[str, ...] = (), names: tuple[str, ...] = ()
) -> None:
    """The installed package of this name, or a stand-in where it is missing, or lacks one of `names`."""
    try:
        found = own(name)
        if all(hasattr(found, one) for one in names):
            return
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != name:
            raise
    sys.modules[name] = kind(name)
    for one in inside:
        sys.modules[f"{name}.{one}"] = getattr(sys.modules[name], one)
