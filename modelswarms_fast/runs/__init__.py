"""What a user starts: `search`, `evaluate`, `compare`, `sweep`, `study`, `token_swarm`.

All of them run on an `experiment`: the engine with its experts and an objective, opened once. `loop` is one swarm, an
iteration at a time; `trial` is a loop with a folder that can be resumed; `scheduler` runs trials side by side.
`confirm` chooses a winner on examples that were kept back, `final_test` scores a whole run on test. `training_data` is
what experts were trained on, and `baselines/` has the other ways to compose experts.
"""
