"""Eight small skills for the demo, and a held-out mix of four of them that no single expert covers.

    python examples/skills.py --out DIR

writes DIR/SKILL.json (train, dev, test) for every skill and DIR/skills_mix.json (dev, test), the task of
the demo.

Every prompt reads "Question: ...\\nAnswer:" and every answer "= something.", at most ten tokens. The fixed
frame matters, because an answer counts as right when it occurs anywhere in the output (exact match as
published): "= 12." does not occur in "= 112.", in "= 120." or in a sentence that repeats the question, so a
wrong or rambling output is not right by accident. No prompt contains "=", so copying it never helps.

The split of an item (the numbers, words, dates of a question, without its wording) is a hash of the item,
so train, dev and test share no item whatever their sizes. Experts are trained on all wordings of a skill
but the last; the mix uses the last, which no expert has seen. All draws come from generators seeded by
"skill/split": the files are the same everywhere. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _words(text: str) -> list[str]:
    return text.split()


WORDS = _words(
    """
    apple bird blue book bread chair cloud coat cold corn day door fire fish flower foot game gold grass
    green hand heart hill horse house ice king lake leaf light milk moon mouse music night ocean paper
    park rain red river road rock salt sand school ship shoe silver sky snow song star stone sugar
    summer sun table train tree wall water wind window winter wood
    """
)
CATEGORIES = {
    "animal": _words(
        "bear bird cat cow dog duck fish fox goat horse lion monkey mouse pig rabbit sheep snake tiger wolf"
    ),
    "colour": _words("black blue brown green grey orange pink purple red white yellow"),
    "fruit": _words("apple banana cherry grape lemon mango peach pear plum strawberry"),
    "tool": _words("axe brush drill hammer knife ladder needle rope saw shovel spoon"),
    "body part": _words("arm chin ear elbow eye finger foot hand head knee leg mouth neck nose shoulder toe"),
}
UNITS = (
    ("kilometres", "metres", "m", 1000),
    ("metres", "centimetres", "cm", 100),
    ("centimetres", "millimetres", "mm", 10),
    ("kilograms", "grams", "g", 1000),
    ("litres", "millilitres", "ml", 1000),
)
# Not from the calendar module: its names follow the locale.
MONTHS = _words("January February March April May June July August September October November December")

# What a question asks with the values of one item: the fields of its wordings, and the answer.
Item = tuple[dict[str, str], str]


def _addition(rng: random.Random) -> Item:
    a = rng.randrange(11, 88)
    b = rng.randrange(11, 99 - a + 1)
    return {"a": str(a), "b": str(b)}, str(a + b)


def _largest(rng: random.Random) -> Item:
    numbers = rng.sample(range(10, 100), 3)
    return {"list": ", ".join(map(str, numbers))}, str(max(numbers))


def _sorting(rng: random.Random) -> Item:
    digits = rng.sample("123456789", 4)
    return {"list": " ".join(digits)}, "".join(sorted(digits))


def _path(rng: random.Random) -> Item:
    a, b, c, d, e = rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 5)
    roads = [f"{a} to {b}", f"{b} to {c}", f"{d} to {e}"]
    rng.shuffle(roads)
    return {"list": ", ".join(roads), "start": a}, c


def _dates(rng: random.Random) -> Item:
    day = datetime.date(2001, 1, 1) + datetime.timedelta(days=rng.randrange(9000))
    after = day + datetime.timedelta(days=1)
    return {"day": day.isoformat()}, f"{after.day} {MONTHS[after.month - 1]}"


def _units(rng: random.Random) -> Item:
    large, small, symbol, factor = rng.choice(UNITS)
    amount = rng.randrange(2, 100)
    return {"amount": str(amount), "large": large, "small": small}, f"{amount * factor} {symbol}"


def _reverse(rng: random.Random) -> Item:
    words = rng.sample(WORDS, 3)
    return {"list": " ".join(words)}, " ".join(reversed(words))


def _category(rng: random.Random) -> Item:
    kinds = rng.sample(sorted(CATEGORIES), 4)
    listed = [rng.choice(CATEGORIES[kind]) for kind in kinds]
    answer = listed[0]
    rng.shuffle(listed)
    return {"kind": kinds[0], "list": ", ".join(listed)}, answer


@dataclass(frozen=True)
class Skill:
    """One skill: how an item is drawn, the wordings in training and in the mix, the sizes of its splits."""

    draw: Callable[[random.Random], Item]
    wordings: tuple[str, ...]
    held_out: str
    train: int = 1600
    dev: int = 32
    test: int = 64


SKILLS: dict[str, Skill] = {
    "addition": Skill(
        _addition,
        ("What is {a} plus {b}?", "Add {a} and {b}.", "Compute the sum of {a} and {b}."),
        "What do {a} and {b} make together?",
    ),
    "category": Skill(
        _category,
        ("Which of these is a kind of {kind}: {list}?", "Find the {kind} in this list: {list}."),
        "One of these is a {kind}: {list}. Which one?",
    ),
    "dates": Skill(
        _dates,
        ("Which day comes after {day}?", "Today is {day}. What is the date of tomorrow?"),
        "It was {day} yesterday. Which date is it now?",
    ),
    "largest": Skill(
        _largest,
        ("Which number is the largest: {list}?", "Give the largest of these numbers: {list}."),
        "Pick the number that is greater than the others: {list}.",
    ),
    "path": Skill(
        _path,
        (
            "Roads go from {list}. Where does the way from {start} end?",
            "Arrows: {list}. Start at {start}. Where is the end?",
        ),
        "Trains run from {list}. Who boards at {start}, where is the last stop?",
    ),
    "reverse": Skill(
        _reverse,
        ("Write these words in reverse order: {list}.", "Reverse the order of: {list}."),
        "Say these words from the last to the first: {list}.",
    ),
    "sorting": Skill(
        _sorting,
        ("Sort these digits: {list}.", "Put the digits {list} in order."),
        "Arrange from the smallest to the biggest: {list}.",
    ),
    "units": Skill(
        _units,
        ("How many {small} are {amount} {large}?", "Convert {amount} {large} to {small}."),
        "{amount} {large} are how many {small}?",
        train=300,  # of the 490 items there are
    ),
}

# Four skills for the mix; the other four experts are of no use for it, which the search has to find out. Coefficients
# of a mixture sum to 1, so that of eight skills in equal parts each expert would be too weak to answer.
MIX_SKILLS = ("addition", "category", "largest", "path")
MIX_DEV, MIX_TEST = 160, 480


def skills() -> list[str]:
    """The names of the skills, sorted."""
    return sorted(SKILLS)


def split_of(skill: str, fields: dict[str, str]) -> str:
    """Where an item belongs, by a hash of its values: 70 % train, 10 % dev, 20 % test."""
    digest = hashlib.sha256(json.dumps([skill, fields], sort_keys=True).encode()).digest()
    bucket = digest[0] % 10
    return "train" if bucket < 7 else "dev" if bucket == 7 else "test"


def generate(skill: str, split: str, n: int, *, held_out: bool = False) -> list[dict[str, str]]:
    """n different items of one skill and split, each {"question": ..., "answer": "= ..."}; always the same.

    held_out: in the wording that no expert was trained on. Raises ValueError if there are fewer than n items.
    """
    wordings = (SKILLS[skill].held_out,) if held_out else SKILLS[skill].wordings
    rng = random.Random(f"{skill}/{split}")
    examples: dict[str, dict[str, str]] = {}
    for _ in range(1000 * n):
        if len(examples) == n:
            break
        fields, answer = SKILLS[skill].draw(rng)
        wording = rng.choice(wordings)
        key = json.dumps(fields, sort_keys=True)
        if split_of(skill, fields) == split and key not in examples:
            question = f"Question: {wording.format(**fields)}\nAnswer:"
            examples[key] = {"question": question, "answer": f"= {answer}."}
    else:
        raise ValueError(f"{skill}/{split} has fewer than {n} different items")
    return list(examples.values())


def splits(skill: str) -> dict[str, list[dict[str, str]]]:
    """Train, dev and test of one skill in the wordings of training."""
    sizes = {"train": SKILLS[skill].train, "dev": SKILLS[skill].dev, "test": SKILLS[skill].test}
    return {split: generate(skill, split, n) for split, n in sizes.items()}


def mix(split: str, n: int) -> list[dict[str, str]]:
    """n questions, the skills of the mix in equal parts, in held-out wordings, shuffled; "domain" is the skill."""
    names = MIX_SKILLS
    if n % len(names):
        raise ValueError(f"{n} questions cannot be divided equally among {len(names)} skills")
    examples = [
        {**example, "domain": name}
        for name in names
        for example in generate(name, split, n // len(names), held_out=True)
    ]
    random.Random(f"mix/{split}").shuffle(examples)
    return examples


def mix_task(dev: int = MIX_DEV, test: int = MIX_TEST) -> dict[str, object]:
    """The task file of the demo, in the published format for exact match."""
    return {"dataset": "skills_mix", "dev": mix("dev", dev), "test": mix("test", test)}


def main() -> None:
    """Write the task files."""
    parser = argparse.ArgumentParser(description="Write the skills of the demo as task files.")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the files; created if missing"
    )
    parser.add_argument("--mix-dev", type=int, default=MIX_DEV, help="dev examples of the mix (default: %(default)s)")
    parser.add_argument("--mix-test", type=int, default=MIX_TEST, help="its test examples (default: %(default)s)")
    given = parser.parse_args()
    folder: Path = given.out
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {name: {"dataset": name, **splits(name)} for name in skills()}
    for name, task in {**tasks, "skills_mix": mix_task(given.mix_dev, given.mix_test)}.items():
        temporary = folder / f".{name}.json.tmp"
        temporary.write_text(json.dumps(task, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / f"{name}.json")


if __name__ == "__main__":
    main()
