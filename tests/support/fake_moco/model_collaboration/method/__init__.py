"""A stand-in with MoCo's names and arguments; whatever generates or merges fails."""
