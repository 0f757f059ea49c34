"""Several engines behind the protocol of one: `pool` shares out requests, `supervisor` starts and watches one process
and starts it anew when it dies, `worker_process` is what runs in it."""
