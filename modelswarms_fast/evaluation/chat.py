"""Prompts as a user's messages, in the form that a model's chat template gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelswarms_fast.config import TaskConfig
from modelswarms_fast.errors import InputError

OWN = "base"
"""The setting `chat` that takes each model's own template."""


@dataclass(frozen=True)
class Chat:
    """A chat template, and the system's message."""

    template: str | None = None
    """In Jinja; None: each tokenizer's own."""
    system: str | None = None
    """Goes before the user's message; None: what the template says without one."""
    file: str | None = None
    """Where the template is from."""

    def render(self, tokenizer: Any, messages: Sequence[str]) -> list[str]:
        """Each message as the only one of a user, with the beginning of the answer after it.

        Templates that know "thinking" are told to leave it out. The texts hold all special tokens: tokenize them
        without further ones.

        Raises:
            InputError: there is no template, or it fails or leaves the message out.
        """
        whose = self.file or f"the tokenizer in {getattr(tokenizer, 'name_or_path', None) or 'the base model'}"
        if self.template is None and not getattr(tokenizer, "chat_template", None):
            raise InputError(f"{whose} has no chat template; give one with --chat FILE.jinja, or leave chat out.")
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [[*first, {"role": "user", "content": message}] for message in messages]
        settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            texts = list(map(str, tokenizer.apply_chat_template(turns, chat_template=self.template, **settings)))
        except Exception as error:  # whatever the template raises, of any type
            reason = " ".join(str(error).split())[:300] or "no reason given"
            remedy = "correct it" if self.file else "give another one with --chat FILE.jinja"
            remedy += "" if self.system is None else ", or leave system out if it takes no system message"
            raise InputError(
                f"the chat template of {whose} cannot be used ({type(error).__name__}: {reason}); {remedy}."
            ) from error
        if len(set(texts)) == 1 and len(set(messages)) > 1:
            raise InputError(f"the chat template of {whose} leaves out the user's message; give another one.")
        return texts

    def encode(self, tokenizer: Any, message: str) -> list[int]:
        """Token ids of one message, as `render` has it."""
        return list(tokenizer(self.render(tokenizer, [message])[0], add_special_tokens=False)["input_ids"])


def read_chat(config: TaskConfig) -> Chat | None:
    """The chat template that the settings ask for; None for plain prompts. Raises InputError if it cannot be read."""
    if config.chat is None:
        return None
    if config.chat == OWN:
        return Chat(system=config.system)
    try:
        template = Path(config.chat).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"cannot read the chat template {config.chat}: {reason}; give --chat FILE.jinja, or --chat {OWN} for the "
            "base model's own."
        ) from error
    return Chat(template, config.system, config.chat)
