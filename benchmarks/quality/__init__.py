"""Searches on real tasks: scores of the winner, of other methods and of what each part of the swarm adds."""
