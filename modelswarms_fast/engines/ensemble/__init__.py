"""Mixes the next-token distributions of several models: `engine` is the engine, `decoding` reads and continues
sequences, `vocabulary` has the tokens that the models share."""
