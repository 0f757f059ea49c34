"""The merge.py of the script."""

from modelswarms_fast.compat.run.places import merging

merging(__name__)
