"""What the tests of scorers share: data files, tiny classifiers, and an endpoint that fails when told to."""

from __future__ import annotations

import json
import string
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from modelswarms_fast.evaluation.objectives import Answer

CHAT = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def write_prompts(path: Path, *prompts: str, **fields: Any) -> Path:
    """An evaluation file with these prompts in both splits."""
    examples = [{"prompt": prompt} for prompt in prompts]
    path.write_text(json.dumps({"dev": examples, "test": examples, **fields}), encoding="utf-8")
    return path


def answers(*texts: str) -> list[list[Answer]]:
    """What a model generated for as many examples."""
    return [[Answer(text, len(text.split()))] for text in texts]


def make_classifier(
    folder: Path, *, labels: list[str] | None = None, chat: str | None = None, pad: bool = True, **config: Any
) -> Path:
    """A random Llama with a classification head, one output or those of `labels`, a token a character, after "^"."""
    torch.manual_seed(0)
    names = labels or ["reward"]
    shape = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)},
    } | config  # fmt: skip
    model = LlamaForSequenceClassification(LlamaConfig(**shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    vocabulary = {letter: index for index, letter in enumerate(["~", *string.printable[:94], "\n"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="~"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(single="^ $A", special_tokens=[("^", vocabulary["^"])])
    padding = {"pad_token": "~"} if pad else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="~", model_max_length=64, **padding)
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return folder


class Endpoint:
    """An HTTP server on loopback. `script` holds what the next requests get; after it `usual` is repeated.

    An entry is (status, body, seconds to wait); a body that is no text is sent as JSON. `seen` are the bodies that
    came, `headers` their headers, in small letters.
    """

    def __init__(self, usual: tuple[int, Any, float]) -> None:
        self.script: list[tuple[int, Any, float]] = []
        self.usual = usual
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.seen.append(body)
                    endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                    endpoint.under_way += 1
                    endpoint.most_under_way = max(endpoint.most_under_way, endpoint.under_way)
                    status, reply, wait = endpoint.script.pop(0) if endpoint.script else endpoint.usual
                time.sleep(wait)
                with lock:
                    endpoint.under_way -= 1
                data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # a client that has not waited
                    pass

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def completion(reply: str | None, tokens_in: int = 70, tokens_out: int = 9) -> dict[str, Any]:
    """A chat completion as an OpenAI-compatible server sends it."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out},
    }


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A judge that always says 7."""
    server = Endpoint((200, completion("Rating: 7/10"), 0.0))
    yield server
    server.close()
