"""Has the module that transformers imports."""
