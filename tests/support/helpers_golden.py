"""Numbers of whole runs of model_swarm and MoCo on three experts that are the rows of an identity matrix."""

import json
from pathlib import Path

import numpy as np

from modelswarms_fast.config import SwarmConfig

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = {"float32": np.float32, "float64": np.float64}


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def injected_r(iteration, particle):
    """The r that both programs were given, in the order inertia, cognitive, social, repel."""
    return [((7 * iteration + 3 * particle + 5 * term) % 10 + 1) / 11 for term in range(4)]


def config_of(settings, **others):
    """The settings of a golden file of model_swarm, in our words."""
    words = {"cognitive": "cognitive_coeff", "social": "social_coeff", "repel": "repel_coeff"}
    return SwarmConfig(**{"particles": 3} | {words.get(name, name): value for name, value in settings.items()} | others)
