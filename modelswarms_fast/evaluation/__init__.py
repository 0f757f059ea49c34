"""Population in, scores out: `evaluator` loads particles, keeps the engine busy and scores what comes back.

`requests` turns examples into tokens and follows them to their last answer. `early_stopping` says when a particle's
fate is decided. `objectives/` has one file for each thing a particle can be scored by.
"""
