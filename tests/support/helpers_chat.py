"""A tokenizer of letters with a chat template, one that begins texts with a token of its own."""

from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

LETTERS = [*"abcdefghijklmnopqrstuvwxyzAEIOU0123456789 .,:?!-\n"]
SPECIAL = ["<end>", "<begin>", "<system>", "<user>", "<answer>"]
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>\n{% endif %}"
)


def write_chat_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """One of fewer than 64 tokens in this folder; it adds <begin> to every text, as the template does."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", bos_token="<begin>", chat_template=template
    )
    fast.save_pretrained(folder)
    return folder
