"""What can be checked without a GPU, and one script for a machine that has one."""
