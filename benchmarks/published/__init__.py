"""The published code's own update and iteration, run from the user's clone of it."""
