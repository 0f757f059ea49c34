"""A stand-in of model_swarm's merge.py, of the same interface: it must never be called under `compat.run`."""


def lora_merge(weights, lora_name_list, output_name, gpu_id, directly_load_safetensors=0):
    raise AssertionError("the merge of the script")


def describe():
    """Another function of the user's."""
    return "mine"
