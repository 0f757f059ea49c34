"""What a user starts: `search`, `evaluate`, `compare`, `sweep`, `study`, `token_swarm` and `report`.

All of them run on an `experiment`: the engine with its experts and an objective, opened once. `loop` is one swarm, an
iteration at a time. `trial` is a loop with a record that it can go on from, `trial_folder` keeps that record in a run
folder, `scheduler` runs trials side by side, and `trial_queue` admits them within a budget. `started` has what a run
was started with, `known` what a policy is told of earlier runs, `resume` goes on with any that was cut, and `trust`
says which settings of a run folder the user has to give again. `choose` chooses the winner, `confirm` on examples that
were kept back, and `shrinkage` says what dev says about test; `final_test` scores a whole run on test. `dry_run` says
what a run would send and take, `rough_time` about how long. `training_data` is what experts were trained on, and
`baselines/` has the other ways to compose experts.
"""
