"""A user's own search.py and evaluate.py, of model_swarm or heterogeneous_swarm, on engines that stay.

`__main__` is the command: it starts `broker_process`, and runs the script with the folder `shims/` first on its path.
What is imported from there is by `places`: the user's own modules, in which a model is one of `served`, and the token
ids are those of `tokens`. Its `pools` keep their processes.

But for the command and its broker, all is for the Python of the script, from 3.9 on.
"""
