"""Several engines behind the protocol of one.

`pool` shares out requests, whose `prompts` are sent once. `supervisor` starts one process and kills it if it does not
answer in time; `worker_process` is what runs in it.
"""
