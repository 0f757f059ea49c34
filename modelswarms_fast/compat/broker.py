"""Serves a fleet of engines to other processes, over a Unix socket of its owner's.

Each message is a length and JSON, see `client`. A client shows that it can read the key beside the socket before
anything else is read from it. What a client asks for ends with it.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from hmac import compare_digest
from pathlib import Path
from typing import Any, cast, get_args

from modelswarms_fast.compat.client import proof, receive, send
from modelswarms_fast.compat.fleet import Fleet, Job
from modelswarms_fast.compat.models import CONFIGS, Models, base_of, is_adapter
from modelswarms_fast.compat.tensors import lora_merge
from modelswarms_fast.config import DType, EngineConfig, Sampling
from modelswarms_fast.errors import EngineError, InputError, quoted, short
from modelswarms_fast.weights.base_model import read_object

PATIENCE = 10.0
"""Seconds in which a client has to show that it knows the key."""
PAUSE = 0.2
"""Seconds after which the broker looks whether it has to end."""
GREEDY = Sampling(0.0)


class Broker:
    """Listens at a socket, a thread a client.

    Use it as a context: the socket and its key are there inside.

    Raises:
        InputError: something else is at the path, or the folder cannot hold a socket.
    """

    def __init__(self, path: str | os.PathLike[str], settings: EngineConfig) -> None:
        self.path = Path(path).absolute()
        self.models = Models()
        self.fleet = Fleet(self.models, settings)
        self._key = secrets.token_bytes(32)
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._does: dict[str, Callable[[Mapping[str, Any], socket.socket], dict[str, Any]]] = {
            "ping": lambda given, client: {},
            "find": self._find,
            "generate": self._generate,
            "merge": self._merge,
            "release": self._release,
        }

    def __enter__(self) -> Broker:
        _make_room(self.path)
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            _write_key(self.path.with_name(f"{self.path.name}.key"), self._key)
            before = os.umask(0o177)
            try:
                self._listener.bind(str(self.path))
            finally:
                os.umask(before)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            why = error.strerror or str(error)
            raise InputError(
                f"{self.path} cannot be a socket ({short(why)}); give a path in a folder of yours."
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        for name in (self.path, self.path.with_name(f"{self.path.name}.key")):
            name.unlink(missing_ok=True)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.fleet.release()

    def serve(self, until: Callable[[], bool] = lambda: False) -> None:
        """Answer clients until `until` says so, or for ever."""
        while not until():
            ready, _, _ = select.select([self._listener], [], [], PAUSE)
            if ready:
                client, _ = self._listener.accept()
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        """One client from its first message to its end."""
        with client, suppress(OSError, ValueError):  # it is gone, or sends what is no message: it alone ends
            with self._lock:
                self._clients.add(client)
            try:
                if self._knows_the_key(client):
                    while (message := receive(client)) is not None:
                        send(client, self._reply(message, client))
            finally:
                with self._lock:
                    self._clients.discard(client)

    def _knows_the_key(self, client: socket.socket) -> bool:
        client.settimeout(PATIENCE)
        challenge = secrets.token_hex(32)
        send(client, {"challenge": challenge})
        message = receive(client) or {}
        client.settimeout(None)
        if compare_digest(str(message.get("proof")).encode(), proof(self._key, challenge).encode()):
            send(client, {"ready": True})
            return True
        send(client, {"error": f"The key is not that of the broker at {self.path}; it is in {self.path}.key."})
        return False

    def _reply(self, message: dict[str, Any], client: socket.socket) -> dict[str, Any]:
        operation = message.get("operation")
        if operation not in self._does:
            return {"error": f"There is no operation {quoted(operation)}; choose one of {', '.join(self._does)}."}
        try:
            return self._does[operation](message, client)
        except (InputError, EngineError) as error:
            return {"error": str(error)}
        except Exception as error:  # a client's message must not end the broker
            return {"error": f"{operation} failed ({type(error).__name__}: {short(error)})."}

    def _generate(self, given: Mapping[str, Any], client: socket.socket) -> dict[str, Any]:
        jobs, tokenizers = [], []
        for one in _list(given, "jobs"):
            job, tokenizer = self._job(one)
            jobs.append(job)
            tokenizers.append(tokenizer)
        devices = [int(one) for one in _list(given, "devices")] if "devices" in given else [0]
        together = bool(given.get("together"))
        found = self.fleet.generate(jobs, devices, together=together, wanted=lambda: not _gone(client))
        answers = []
        for some, tokenizer in zip(found, tokenizers, strict=True):
            answers.append([{"ids": ids} for ids in some])
            for one in answers[-1] if tokenizer is not None else ():
                one["text"] = tokenizer.decode(one["ids"], skip_special_tokens=True)
        return {"answers": answers}

    def _job(self, given: object) -> tuple[Job, Any]:
        """A job, and the tokenizer of its model if its prompts are texts. Raises InputError."""
        if not isinstance(given, dict) or not isinstance(given.get("model"), str):
            raise InputError("A job has no model; give it the folder or hub id of one.")
        prompts, limit = _list(given, "prompts"), given.get("max_tokens")
        if not isinstance(limit, int) or limit < 1:
            raise InputError(f"max_tokens is {quoted(limit)}; give a whole number from 1 on.")
        drawn: list[Any] = given.get("samplings") or [GREEDY] * len(prompts)
        if len(drawn) != len(prompts):
            raise InputError(f"{len(drawn)} samplings are given for {len(prompts)} prompts; give one for each.")
        base, dtype = _text(given, "base"), cast("DType | None", _text(given, "dtype"))
        if dtype is not None and dtype not in get_args(DType):
            raise InputError(f"dtype is {quoted(dtype)}; choose one of {', '.join(get_args(DType))}.")
        model = self.models.find(given["model"], base)  # here: what cannot be read is no other client's error
        tokenizer: Any = self.models.tokenizer(model.folder) if any(isinstance(one, str) for one in prompts) else None
        ids = [
            list(tokenizer(one).input_ids) if isinstance(one, str) else [int(token) for token in one] for one in prompts
        ]
        return Job(given["model"], ids, limit, [Sampling(*one) for one in drawn], base, dtype), tokenizer

    def _find(self, given: Mapping[str, Any], client: socket.socket) -> dict[str, Any]:
        """Whether a model is an adapter, and what its base model's files say of how it generates."""
        folder, named = self.models.folder(_text(given, "model") or ""), _text(given, "base")
        base = base_of(folder) if named is None else self.models.folder(named)
        file = base / "generation_config.json"
        file = file if file.is_file() else base / CONFIGS["full"]
        return {"adapter": is_adapter(folder), "generation": read_object(file, "give a complete model")}

    def _merge(self, given: Mapping[str, Any], client: socket.socket) -> dict[str, Any]:
        weights, directly = [float(one) for one in _list(given, "weights")], int(given.get("directly", True))
        lora_merge(weights, _list(given, "models"), given["out"], 0, directly)
        return {}

    def _release(self, given: Mapping[str, Any], client: socket.socket) -> dict[str, Any]:
        self.fleet.release()
        return {}


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} is {quoted(value)}; give a text.")
    return value


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name)
    if not isinstance(value, list):
        raise InputError(f"{name} is {quoted(value)}; give a list.")
    return value


def _gone(client: socket.socket) -> bool:
    """Whether a client that waits for a reply has ended."""
    ready, _, _ = select.select([client], [], [], 0)
    try:
        return bool(ready) and client.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _make_room(path: Path) -> None:
    """Remove the socket of a broker that is dead. Raises InputError where something else is at the path."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be looked at ({error.strerror}); give a path in a folder of yours.") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError(f"{path} is there and is no socket; give another path.")
    if found.st_uid != os.geteuid():
        raise InputError(f"{path} belongs to another user; give another path.")
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.connect(str(path))
        except OSError:  # nobody listens
            path.unlink(missing_ok=True)
            return
    raise InputError(f"A broker serves at {path} already; use it, or give another path.")


def _write_key(path: Path, key: bytes) -> None:
    """A new file that its owner alone can read. Raises OSError."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
