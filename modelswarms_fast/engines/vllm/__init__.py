"""One resident vLLM engine whose weights are written in memory; the only files that touch what is inside vLLM.

`engine` starts vLLM and speaks its public interface. `worker` is the part of it that runs beside the model and writes
rows into its weights or LoRA slots. `mixture` serves particles as coefficients of resident experts, with the
products of `low_rank`. `cpu_patches` is what vLLM's CPU build needs. `tensor_parallel` calls
the workers of several ranks.
"""
