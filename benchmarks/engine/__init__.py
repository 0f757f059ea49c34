"""What an engine with experts takes: a load, an iteration, a search, its start and its memory."""
