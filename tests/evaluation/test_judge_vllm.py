"""The judge against a real server: vLLM's OpenAI-compatible one, with the packaged model, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_scorers import answers, write_prompts

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import load_utility
from modelswarms_fast.weights.base_model import resolve_base

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. It wants the key "sesame" and calls its model "small"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(resolve_base("smollm2-135m-instruct")),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "small", "--api-key", "sesame"]
    command += [
        "--max-model-len",
        "1024",
        "--max-num-seqs",
        "8",
        "--enforce-eager",
        "--kv-cache-memory-bytes",
        str(1 << 28),
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "human.json", "Name a colour.", "What is 2 + 2?", "Greet me.")


def test_ratings_of_a_real_judge(server: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    options = {"model": "small", "endpoint": server, "cache": str(data.parent / "cache"), "concurrency": "3"}
    utility = load_utility("judge", data, options=options | {"price_in": "1", "price_out": "1"})
    given = answers("Blue.", "It is 4.", "Hello!")
    scores = utility.score("dev", [0, 1, 2], given)
    report = utility.report()
    assert all(1 <= score <= 10 for score in scores)
    assert (report["ratings"], report["requests"], report["cached"]) == (3, 4, 0)
    assert report["unparsable"] < 3  # even a small model keeps to the form now and then
    assert 4 * 60 < report["tokens_in"] < 4 * 200
    assert 4 <= report["tokens_out"] <= 4 * 20
    assert report["cost"] == (report["tokens_in"] + report["tokens_out"]) / 1e6

    again = load_utility("judge", data, options=options)
    assert again.score("dev", [0, 1, 2], given) == scores
    assert again.report()["requests"] == 1  # the check


@pytest.mark.parametrize(
    ("key", "model", "said"),
    [
        ("wrong", "small", "refuses the key; put a valid one into the environment variable OPENAI_API_KEY"),
        ("sesame", "large", "does not know the model large"),
    ],
)
def test_refusals_of_a_real_server(
    server: str, data: Path, monkeypatch: pytest.MonkeyPatch, key: str, model: str, said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=said):
        load_utility("judge", data, options={"model": model, "endpoint": server, "cache": str(data.parent)})
