"""A client of `modelswarms-fast serve`: the standard library alone, from Python 3.9 on.

    client = Client("/run/user/1000/models.sock")      # or Client(), by MODELSWARMS_SOCKET
    client.generate([{"model": "experts/a", "prompts": ["Hello"], "max_tokens": 20}])

It works without this package as well: copy this file into the other environment.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
import threading
from typing import Any

LARGEST = 1 << 28
"""Bytes of a message."""
PATH = "MODELSWARMS_SOCKET"


class BrokerError(Exception):
    """The broker cannot be reached, or cannot do what it was asked for."""


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message: the length of its JSON in four bytes, and the JSON. Raises OSError."""
    data = json.dumps(message).encode()
    if len(data) > LARGEST:
        raise BrokerError(f"A message of {len(data)} bytes is too large; send at most {LARGEST}.")
    connection.sendall(struct.pack(">I", len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message; None where the other side has ended. Raises OSError, or ValueError for what is no message."""
    head = _bytes(connection, 4)
    if head is None:
        return None
    (length,) = struct.unpack(">I", head)
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes")
    data = _bytes(connection, length)
    if data is None:
        return None
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


def proof(key: bytes, challenge: str) -> str:
    """What shows that one knows the key without telling it."""
    return hmac.new(key, challenge.encode(), hashlib.sha256).hexdigest()


def _bytes(connection: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        some = connection.recv(min(count - len(found), 1 << 20))
        if not some:
            return None
        found += some
    return bytes(found)


class Client:
    """Asks the broker at a socket. Threads may share one; each process has a connection of its own."""

    def __init__(self, path: str | None = None) -> None:
        """`path`: of the socket; by default what MODELSWARMS_SOCKET says."""
        found = path or os.environ.get(PATH)
        if not found:
            raise BrokerError(f"No socket is given; set {PATH} to that of modelswarms-fast serve.")
        self.path = found
        self._connection: socket.socket | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    def generate(
        self, jobs: list[dict[str, Any]], devices: tuple[int, ...] = (0,), together: bool = False
    ) -> list[list[dict[str, Any]]]:
        """Answers of each job's model to each of its prompts: "ids", and "text" where prompts are texts.

        Args:
            jobs: "model" (folder or hub id), "prompts" (texts, or lists of token ids), "max_tokens", and for drawn
                answers "samplings": one for each prompt, of temperature, top_p, seed, top_k and repetition penalty.
                "base" is an adapter's base model, where it is not the one that its config names. "dtype" is the number
                type of the base model, where the broker was not started with one.
            devices: GPUs, as the broker numbers them; on a CPU without meaning.
            together: spread each model over all devices.

        Raises:
            BrokerError: the broker is gone, or refuses; the message says why.
        """
        reply = self.call("generate", jobs=jobs, devices=list(devices), together=together)
        found: list[list[dict[str, Any]]] = reply["answers"]
        return found

    def merge(self, weights: list[float], models: list[str], out: str, directly: bool = True) -> None:
        """Write the weighted sum of adapters to a folder; `directly` in the adapters' number type, else in float32.

        Raises BrokerError.
        """
        models = [os.path.abspath(one) for one in models]
        self.call("merge", weights=weights, models=models, out=os.path.abspath(out), directly=directly)

    def find(self, model: str, base: str | None = None) -> dict[str, Any]:
        """Whether a model is an "adapter", and the "generation" settings of its base, or of the one that is given.

        Raises BrokerError.
        """
        return self.call("find", model=model, base=base)

    def release(self) -> None:
        """End the broker's engines; they start again when they are needed. Raises BrokerError."""
        self.call("release")

    def ping(self) -> None:
        """Raise BrokerError if no broker answers."""
        self.call("ping")

    def call(self, operation: str, **given: Any) -> dict[str, Any]:
        """The broker's reply to one message. Raises BrokerError."""
        with self._lock:
            if self._process != os.getpid():  # after a fork the connection is that of the other process
                self._connection, self._process = None, os.getpid()
            try:
                if self._connection is None:
                    self._connection = self._connect()
                send(self._connection, {"operation": operation, **given})
                reply = receive(self._connection)
            except (OSError, ValueError) as error:
                self._end()
                raise BrokerError(self._gone(error)) from None
            if reply is None:
                self._end()
                raise BrokerError(self._gone("it has ended"))
        if "error" in reply:
            raise BrokerError(reply["error"])
        return reply

    def close(self) -> None:
        """End the connection; the next call makes a new one."""
        with self._lock:
            self._end()

    def _connect(self) -> socket.socket:
        try:
            with open(f"{self.path}.key", "rb") as file:
                key = file.read()
        except OSError as error:
            raise BrokerError(self._gone(error)) from None
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.path)
            challenge = receive(connection) or {}
            send(connection, {"proof": proof(key, str(challenge.get("challenge")))})
            reply = receive(connection) or {}
        except (OSError, ValueError):
            connection.close()
            raise
        if "error" in reply or not reply:
            connection.close()
            raise BrokerError(reply.get("error") or self._gone("it has ended"))
        return connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _gone(self, why: object) -> str:
        why = why.strerror if isinstance(why, OSError) and why.strerror else why
        return f"No broker answers at {self.path} ({why}); start one with: modelswarms-fast serve --socket {self.path}"
