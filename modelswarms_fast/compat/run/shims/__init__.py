"""Modules that a script imports in place of its own, or of packages that are missing.

`evaluate` and `merge` are the user's. `wandb`, `trl`, `vertexai`, `googleapiclient` and `tenacity` are the
installed ones, or stand-ins.
"""
