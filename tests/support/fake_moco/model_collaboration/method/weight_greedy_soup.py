"""A method that imports the merge by its name."""

from model_collaboration.utils.swarm import lora_merge  # noqa: F401
