"""One resident vLLM engine whose weights are written in memory; the only files that touch what is inside vLLM.

`engine` speaks vLLM's public interface; `launch` starts it with the settings of `arguments`. `worker` runs beside the
model; `weight_map` finds a checkpoint's tensors in it, by what `probes` records. Particles are served by `live_weights`
(written into the weights), `lora_slots` (several in one batch), or `mixture` (as coefficients of resident experts, with
the products of `low_rank`, or of `update_mixture` where update matrices are mixed); `model_runners` says whose tokens a
step has. `cpu_patches` is what vLLM's CPU build needs. `tensor_parallel` calls the workers of several ranks, each a
`rank_worker`; `nameless` has them leave nothing behind. `process_groups` ends what engines share with the last of them.
`relied_on` names what is used inside vLLM, and finds what another version lacks.
"""
