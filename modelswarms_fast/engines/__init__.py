"""Engines serve particles: a row or a mixture is loaded into a slot, prompts go in, completions come out.

`protocol` is what every engine can do, and `start` starts the one that the settings ask for. `transformers` is slow
and exact; `checkpoint_names` says where tensors lie in its models, and `tensor_names` which layer an adapter means.
`vllm/` is fast; `pool/` is several engines in processes of their own behind the same protocol; `ensemble/` mixes what
experts say next. `sampling` draws tokens.
`parity_check` compares what an engine serves with the `oracle`: the transformers engine in a process of its own;
`agreement` is how.
`cores` shares out the cores, and `stopped` finds processes that stand still.
"""
