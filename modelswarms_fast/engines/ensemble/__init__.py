"""Mixtures of what experts say next, token by token: `engine` has the protocol, `decoding` reads and continues
sequences, `vocabulary` holds the tokens that the experts share."""
