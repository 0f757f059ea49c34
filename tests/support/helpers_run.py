"""A folder as a user of model_swarm has it who wrote his own evaluate.py, and what that says by itself."""

import importlib
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from helpers_model_swarm import make_place
from transformers import PreTrainedModel

from benchmarks.published.published_search import on_cpu
from modelswarms_fast.compat import client as client_module
from modelswarms_fast.compat.broker import Broker
from modelswarms_fast.compat.run import places, served
from modelswarms_fast.config import EngineConfig

FAKE = Path(__file__).parent / "fake_model_swarm"
ROOT = Path(__file__).parents[2]
ENGINE = ["--engine", "transformers", "--dtype", "float32"]
SHIMMED = ("evaluate", "merge", "trl", "vertexai", "vertexai.generative_models", "tenacity", "googleapiclient")


def make_script(folder: Path) -> Path:
    """Experts, a base model, data, and the scripts."""
    make_place(folder)
    (folder / "search").mkdir()
    for file in FAKE.glob("*.py"):
        shutil.copy(file, folder)
    return folder


def start(place: Path, *words: str, **env: str) -> subprocess.Popen:
    """`compat.run` in this folder."""
    command = [sys.executable, "-m", "modelswarms_fast.compat.run", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | env
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=place, env=env, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def serving(path: Path, settings: EngineConfig):
    """A broker in this process that clients find by the environment."""
    over = threading.Event()
    before = os.environ.get(client_module.PATH)
    with Broker(path, settings) as broker:
        thread = threading.Thread(target=broker.serve, args=(over.is_set,))
        thread.start()
        os.environ[client_module.PATH], served._client = str(path), None
        try:
            yield broker
        finally:
            served._client = None
            os.environ.pop(client_module.PATH)
            if before is not None:
                os.environ[client_module.PATH] = before
            over.set()
            thread.join()


@contextmanager
def modules_of(place: Path):
    """In this folder, `evaluate` and `merge` are what a script gets there under `compat.run`."""
    before, folder = list(sys.path), Path.cwd()
    sys.path[:0] = [places.SHIMS, str(place)]
    os.chdir(place)
    try:
        yield lambda name: importlib.import_module(name)
    finally:
        os.chdir(folder)
        sys.path[:] = before
        forget()


def forget() -> None:
    """Import the modules of a script anew."""
    for name in SHIMMED:
        sys.modules.pop(name, None)


@contextmanager
def by_itself(place: Path):
    """In this folder, `evaluate` is the user's, and its models are those of transformers on the CPU."""
    kept = [(owner, owner.to) for owner in (torch.Tensor, PreTrainedModel)]
    for owner, _ in kept:
        on_cpu(owner)
    serve = places.evaluation
    places.evaluation = places.own
    try:
        with modules_of(place) as load:
            yield load
    finally:
        places.evaluation = serve
        for owner, method in kept:
            owner.to = method
