"""Models whose logits are mixed."""

from model_collaboration.data import eval


class LogitArithmetic:
    def __init__(self, model_names, model_devices, tokenizer, system_prompt=None, model_kwargs=None):
        eval.loaded.append(("logits", eval.engines()))
