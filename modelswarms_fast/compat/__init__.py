"""What model_swarm and MoCo decide and compute, for their users: the same numbers from the same settings.

`published` is the policy of model_swarm, `moco` that of MoCo's Swarm and `moco_numeric` MoCo's swarm of plain vectors;
`draws` has the random numbers that both share.
"""
