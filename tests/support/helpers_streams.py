"""Streams that queue what they are given, to replay it in any order that events allow."""

import random
import threading
from collections import deque
from contextlib import contextmanager

import torch


class Streams:
    """CUDA streams without a GPU: work is only queued, and runs in any order that the events allow."""

    def __init__(self, order):
        self.order = order
        self.all = []
        self.main = self.stream()
        self.here = threading.local()  # each thread has a stream of its own that it gives work to

    @property
    def active(self):
        return getattr(self.here, "stream", self.main)

    def stand_in(self, monkeypatch):
        """For CUDA's streams, until the test ends."""
        monkeypatch.setattr(torch.cuda, "Stream", self.stream)
        monkeypatch.setattr(torch.cuda, "stream", self.using)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.active)

    def stream(self, device=None):
        self.all.append(FakeStream(self))
        return self.all[-1]

    @contextmanager
    def using(self, chosen):
        before, self.here.stream = self.active, chosen
        yield
        self.here.stream = before

    def step(self):
        ready = [one for one in self.all if one.queue and not (one.queue[0][0] == "wait" and not one.queue[0][1][0])]
        kind, what = self.order(ready, self.all).queue.popleft()
        if kind == "run":
            what()
        elif kind == "set":
            what[0] = True


class FakeStream:
    def __init__(self, streams):
        self.streams, self.queue = streams, deque()

    def record_event(self):
        event = [False]
        self.queue.append(("set", event))
        return event

    def wait_event(self, event):
        self.queue.append(("wait", event))

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def synchronize(self):
        while self.queue:
            self.streams.step()


def by_priority(priority):
    """Whichever of the streams that can go on comes first."""
    return lambda ready, streams: min(ready, key=lambda one: priority.index(streams.index(one)))


def at_random(seed):
    draw = random.Random(seed)
    return lambda ready, streams: draw.choice(ready)
