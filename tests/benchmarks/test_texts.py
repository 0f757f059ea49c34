"""Training and evaluation have no text in common, however a template wraps it."""

from benchmarks.quality.texts import COMMON, apart, held_apart

TEXTS = [f"the number {n} is what this text of number {n} says in words that are its own {n}" for n in range(40)]
ASKS = ("{} What does this say about numbers and texts in general and here?", "Read what follows and answer: {}")


def pairs():
    return [(ask.format(text), "yes") for text in TEXTS for ask in ASKS]


def test_an_example_whose_text_is_asked_about_otherwise_is_left_out():
    left = apart(pairs(), [f"Quite another question about {TEXTS[3]}?"])
    assert len(left) == len(pairs()) - 2
    assert not any(TEXTS[3] in prompt for prompt, _ in left)


def test_a_template_is_no_text():
    """More prompts have it than a text could."""
    assert len(TEXTS) > COMMON
    assert apart(pairs(), [ASKS[0].format("nothing")]) == pairs()


def test_no_text_is_both_learnt_and_held_out():
    learnt, held = held_apart(pairs())
    assert len(learnt) + len(held) == len(pairs())
    assert 0 < len(held) <= len(pairs()) // 10
    texts = [{text for text in TEXTS if any(text in prompt for prompt, _ in part)} for part in (learnt, held)]
    assert not texts[0] & texts[1]
    assert held_apart(pairs()) == (learnt, held)


def test_where_all_texts_are_many_times_there_the_smallest_group_is_held_out():
    few = [(f"{n}: {TEXTS[n % 2]}", "yes") for n in range(10)]
    learnt, held = held_apart(few[:9])
    assert len(held) == 4
    assert len(learnt) == 5
