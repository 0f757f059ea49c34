"""The evaluate.py of the script."""

from modelswarms_fast.compat.run.places import evaluation

evaluation(__name__)
