"""Several engines behind the protocol of one.

`pool` gives requests to the engines as `sharing` says; their `prompts` are sent once. `members` is what it asks of its
engines, wherever they run. `processes` are engines of this node: `supervisor` starts one process and kills it if it
does not answer in time; `worker_process` is what runs in it. `ray_actor` are engines of a Ray `cluster`.
"""
