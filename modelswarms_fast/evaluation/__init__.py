"""Particles in, scores out: `evaluator` loads particles, keeps the engine busy and scores what comes back.

`requests` turns examples into tokens and follows them to their last answer, and `chat` puts prompts into a chat
template. `padding` makes the prompts of a batch equally long, for the numbers of other code. `early_stopping` says when
a particle's fate is decided, `racing` when it is hopeless, `score_cache` what is known of a position, `spent` what it
all has cost. `holdout` keeps examples back for the choice of a winner.
`objectives/` has one file for each thing a particle can be scored by.

`bounded` keeps what a server answers within a size and a time.

`dataset_files` reads the files that people have, `dataset` makes dev and test of them.
"""
