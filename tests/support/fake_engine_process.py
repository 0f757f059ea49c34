"""Run as the process of an engine of a group: no model, no torch, and what it does is the first token of a prompt.

What goes wrong does so once, as far as a file in SCRATCH tells; a token above AGAIN goes wrong every time.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

RIGHT, STOP, LOCK, SPIN, SLOW, STEPS, KILL, AGAIN = range(1, 9)


def fail(what, pipe):
    """Go wrong, unless it was for once and has been; SLOW and STEPS only take their time."""
    if what < AGAIN:
        mark = Path(os.environ["SCRATCH"]) / str(what)
        if mark.exists():
            return
        mark.touch()
    what %= AGAIN
    if what == STOP:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == LOCK:
        lock = threading.Lock()
        with lock:
            lock.acquire()
    elif what == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == SPIN:
        compute(60)
    elif what == SLOW:
        compute(1.0)
    elif what == STEPS:
        for _ in range(20):
            compute(0.25)
            pipe.send(("ended", [], [("step", 0.0, 1.0)]))


def compute(seconds):
    """Use the processor."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def main(pipe):
    """As worker_process.main, as far as these tests go: one message after the other, each answered whole."""
    pipe.recv_bytes()  # the start; to read it would take torch
    pipe.send(("ready", "merged", 1, None, 1000, 32))
    way, held, prompts = "merged", {}, {}
    while True:
        for name, *arguments in pipe.recv():
            if name == "prompt":
                prompts[arguments[0]] = arguments[1]
            elif name == "load_mixture":
                held[arguments[0]] = arguments[1]
            elif name == "set_mode":
                (way,) = arguments
            elif name == "autotune":
                first = prompts[arguments[0][0]]
                if first[0] != RIGHT:
                    fail(first[0], pipe)
                pipe.send(("answer", ("slots", {"merged": 1.0, "slots": float(len(arguments[0]))})))
            elif name == "count_slots":
                pipe.send(("answer", 3 if way == "slots" else 1))
            elif name == "submit":
                key, slot, prompt, *_ = arguments
                tokens = prompts[prompt]
                if tokens[0] != RIGHT:
                    fail(tokens[0], pipe)
                text = f"{os.environ['OMP_NUM_THREADS']} {way} {held.get(slot)} {len(tokens)}"
                pipe.send(("ended", [(key, text, 1)], []))


if __name__ == "__main__":
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        main(Connection(int(sys.argv[1])))
