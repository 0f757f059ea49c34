"""Stands in for torchvision where it is not installed: the names that are imported for a model that sees.

vLLM imports transformers' image processors for such a model, and these import torchvision. While vLLM serves the text
model alone, nothing of it is called. Put the folder above on PYTHONPATH.
"""

__version__ = "0.0.0"
