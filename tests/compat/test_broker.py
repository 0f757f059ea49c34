"""The broker and its client: the same answers as in one process, several clients, and what must not get through."""

import ast
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import helpers_moco
import pytest

from modelswarms_fast.compat import client as client_module
from modelswarms_fast.compat.broker import GREEDY, Broker
from modelswarms_fast.compat.client import BrokerError, Client, proof, receive, send
from modelswarms_fast.compat.fleet import Fleet, Job
from modelswarms_fast.compat.models import Models
from modelswarms_fast.errors import InputError

zoo, broker = helpers_moco.zoo, helpers_moco.broker
SOURCE = Path(client_module.__file__)
TEXTS = ["bad", "dig", "fun"]


def job(model, prompts=TEXTS, **more):
    return {"model": model, "prompts": list(prompts), "max_tokens": 5} | more


def test_answers_are_those_of_a_fleet_in_this_process(broker, zoo):
    models = Models()
    tokenizer = models.tokenizer(models.folder(zoo.a))
    ids = [tokenizer(text).input_ids for text in TEXTS]
    fleet = Fleet(models, helpers_moco.SETTINGS)
    expected = fleet.generate([Job(model, ids, 5, [GREEDY] * 3) for model in (zoo.a, zoo.b, zoo.other)])
    fleet.release()
    client = Client(str(broker.path))
    found = client.generate([job(model) for model in (zoo.a, zoo.b, zoo.other)])
    assert [[one["ids"] for one in some] for some in found] == expected
    assert [one["text"] for one in found[0]] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected[0]]
    bare = client.generate([job(zoo.a, ids)])
    assert bare == [[{"ids": one} for one in expected[0]]]
    assert len({str(one) for one in expected}) == 3


def test_drawn_answers_follow_from_their_seeds(broker, zoo):
    client = Client(str(broker.path))

    def draw(seed):
        return client.generate([job(zoo.a, samplings=[[1.0, 1.0, seed + n, 0, 1.0] for n in range(3)])])

    assert draw(1) == draw(1) != draw(2)


def test_clients_share_the_engines_and_one_that_is_wrong_spoils_nothing(broker, zoo, tmp_path):
    def ask(client, model):
        try:
            return client.generate([job(model)])
        except BrokerError as error:
            return str(error)

    models = [zoo.a, str(tmp_path / "nothing"), zoo.b, zoo.a]
    found = [None] * len(models)

    def run(number):
        found[number] = ask(Client(str(broker.path)), models[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(models))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found[0] == found[3] == ask(Client(str(broker.path)), zoo.a)
    assert found[2] == ask(Client(str(broker.path)), zoo.b)
    assert "nothing" in found[1]
    assert len(broker.fleet._engines) == 1


def test_a_merge_is_written_and_served(broker, zoo, tmp_path):
    client, out = Client(str(broker.path)), tmp_path / "merged"
    out.mkdir()
    for file in Path(zoo.a).iterdir():
        if not file.name.endswith(".safetensors"):
            (out / file.name).write_bytes(file.read_bytes())
    client.merge([1.0, 0.0], [zoo.a, zoo.b], str(out))
    assert client.generate([job(str(out))]) == client.generate([job(zoo.a)])
    client.merge([0.0, 1.0], [zoo.a, zoo.b], str(out))
    assert client.generate([job(str(out))]) == client.generate([job(zoo.b)])


def test_engines_that_were_released_start_again(broker, zoo):
    client = Client(str(broker.path))
    before = client.generate([job(zoo.a)])
    client.release()
    assert not broker.fleet._engines
    assert client.generate([job(zoo.a)]) == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"operation": "dance"}, "There is no operation 'dance'; choose one of ping, find, generate"),
        ({"operation": "generate", "jobs": 3}, "jobs is 3; give a list"),
        ({"operation": "generate", "jobs": [{}]}, "A job has no model"),
        ({"operation": "generate", "jobs": [{"model": "m", "prompts": ["a"], "max_tokens": 0}]}, "max_tokens is 0"),
        ({"operation": "find", "model": "/none"}, "/none"),
        ({"operation": "find", "model": 3}, "model is 3; give a text"),
        ({"operation": "merge", "weights": [1], "models": ["/none"], "out": "/none/x"}, "/none"),
        ({"operation": "generate", "jobs": [{"model": "/none", "prompts": [[1]], "max_tokens": 1}]}, "/none"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_the_client_goes_on(broker, given, sentence):
    client = Client(str(broker.path))
    with pytest.raises(BrokerError, match=sentence) as caught:
        client.call(given["operation"], **{name: value for name, value in given.items() if name != "operation"})
    assert "\n" not in str(caught.value)
    client.ping()


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", struct.pack(">I", 3) + b"{{{", struct.pack(">I", 2) + b"[]", b"\x00\x00"]
)
def test_what_is_no_message_ends_that_client_alone(broker, data):
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(broker.path))
        key = Path(f"{broker.path}.key").read_bytes()
        send(bad, {"proof": proof(key, receive(bad)["challenge"])})
        assert receive(bad) == {"ready": True}
        bad.sendall(data)
        bad.shutdown(socket.SHUT_WR)
        bad.settimeout(10)
        assert receive(bad) is None
    Client(str(broker.path)).ping()


def test_who_does_not_know_the_key_is_refused(broker):
    Path(f"{broker.path}.key").write_bytes(b"another")
    with pytest.raises(BrokerError, match="The key is not that of the broker"):
        Client(str(broker.path)).ping()
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(broker.path))
        receive(bad)
        send(bad, {"operation": "ping"})
        assert "error" in receive(bad)
        assert receive(bad) is None


def test_only_the_owner_can_use_the_socket_and_the_key(broker):
    for name in (broker.path, Path(f"{broker.path}.key")):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600


def test_what_is_at_the_path_is_not_removed_unless_it_is_a_dead_broker(broker, tmp_path):
    with pytest.raises(InputError, match=r"serves at .* already"), Broker(broker.path, helpers_moco.SETTINGS):
        pass
    file = tmp_path / "notes"
    file.write_text("mine")
    with pytest.raises(InputError, match="is no socket"), Broker(file, helpers_moco.SETTINGS):
        pass
    assert file.read_text() == "mine"
    with pytest.raises(InputError, match="give a path in a folder of yours"):
        Broker(tmp_path / "no" / "s", helpers_moco.SETTINGS).__enter__()


def test_a_call_whose_client_has_gone_is_not_answered(broker, zoo):
    """It waits behind another, and its client ends: nothing is generated for it."""
    asked = []
    generate = broker.fleet._generate
    broker.fleet._generate = lambda jobs, *more: (asked.extend(one.model for one in jobs), generate(jobs, *more))[1]
    gone = Client(str(broker.path))
    gone.ping()
    with broker.fleet._lock:
        send(gone._connection, {"operation": "generate", "jobs": [job(zoo.b)]})
        for _ in range(200):
            if broker.fleet._calls:
                break
            time.sleep(0.02)
        gone.close()
    found = Client(str(broker.path)).generate([job(zoo.a)])
    assert len(found[0]) == 3
    assert asked == [zoo.a]


def test_a_broker_that_was_killed_is_one_sentence_and_the_next_one_takes_its_place(tmp_path, zoo):
    path = tmp_path / "s"
    command = [sys.executable, "-c", "from modelswarms_fast.cli.main import main; main()"]
    command += ["serve", "--socket", str(path), "--engine", "transformers", "--dtype", "float32"]

    def start():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert f"serving at {path}" in process.stderr.readline()
        return process

    first, client = start(), Client(str(path))
    expected = client.generate([job(zoo.a)])
    first.kill()
    first.wait()
    with pytest.raises(BrokerError, match=rf"No broker answers at {path} .*; start one with: modelswarms-fast serve"):
        client.generate([job(zoo.a)])
    second = start()
    assert client.generate([job(zoo.a)]) == expected
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 128 + signal.SIGTERM
    assert not path.exists()
    assert not Path(f"{path}.key").exists()


def test_the_client_needs_the_standard_library_of_python_39_alone(broker):
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    names = {one.module if isinstance(one, ast.ImportFrom) else name.name for one in ast.walk(tree)
             if isinstance(one, ast.Import | ast.ImportFrom) for name in one.names}  # fmt: skip
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    code = f"import runpy; runpy.run_path({str(SOURCE)!r})['Client']({str(broker.path)!r}).ping()"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_the_socket_can_be_named_by_the_environment(broker, monkeypatch):
    monkeypatch.delenv(client_module.PATH, raising=False)
    with pytest.raises(BrokerError, match=f"set {client_module.PATH}"):
        Client()
    monkeypatch.setenv(client_module.PATH, str(broker.path))
    client = Client()
    client.ping()
    if (child := os.fork()) == 0:  # a process has a connection of its own
        client.ping()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    client.ping()


def test_a_message_that_is_too_large_is_not_sent(broker, monkeypatch):
    client = Client(str(broker.path))
    monkeypatch.setattr(client_module, "LARGEST", 100)
    with pytest.raises(BrokerError, match="too large"):
        client.call("ping", more="x" * 100)
    client.ping()
