"""The single expert that is best on dev."""

from __future__ import annotations

import numpy as np

from modelswarms_fast.runs.baselines import Choice, best_of, mixture_choice
from modelswarms_fast.runs.experiment import Session


def run(session: Session, budget: int, seed: int) -> Choice:
    """See `modelswarms_fast.runs.baselines`."""
    best = best_of(session.initial)
    mixture = np.eye(len(session.initial))[best]
    return mixture_choice(
        session, mixture, float(session.initial[best]), len(session.initial), expert=session.experts.names[best]
    )
