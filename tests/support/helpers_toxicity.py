"""Scorers as a user writes them."""


def loud(text: str) -> float:
    """Capitals are three quarters toxic."""
    return 0.75 if text.isupper() else 0.0


def beyond(text: str) -> float:
    """No toxicity."""
    return 1.5


def broken(text: str) -> float:
    """A defect."""
    raise RuntimeError("no idea")
