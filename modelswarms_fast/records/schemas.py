"""What the files of a run folder hold: one schema a file, checked once where it is read.

A file that a run wrote, of whatever state, fits; fields that are not named here are left alone. A schema says what the
report, a resumed run and the analyses take for granted, so that none of them meets a text where a number should be.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 1e30
"""Bound of every number: squares and sums of such numbers are finite."""

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = dict[str, Number | None]
Score = Number | Literal["nan"] | None
"""Of an example: "nan" for a NaN, null where none was needed."""


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Best(_Schema):
    """A global best or worst: who found it, and its utility."""

    particle: int | None = None
    utility: Number | None = None


class Line(_Schema):
    """A line of history.jsonl: one iteration."""

    iteration: Count
    utilities: list[Number | None]
    """[P] one a particle."""
    evaluated: list[bool] | None = None
    """[P] false where a particle kept its last utility."""
    improved: list[Count] = []
    """Particles with a new personal best."""
    global_best: Best | None = None
    global_worst: Best | None = None
    bounded: list[dict[str, Number | None]] = []
    """Particles that were stopped early, with both bounds of their utility."""
    restarts: list[Count] = []
    step_length: Number | None = None
    global_best_mixture: list[Number] | None = None
    """[n] the best so far as coefficients of the experts."""
    mixtures: list[list[Number]] | None = None
    """[P][n] every position."""
    scores: list[list[Score] | None] | None = None
    """[P][E] every particle on every dev example."""
    prompts: Count | None = None
    tokens: Count | None = None
    engine_idle_share: Number | None = None
    seconds: Seconds | None = None


class RecordedLine(Line):
    """A line that a search goes on from: nothing of it may be missing."""

    evaluated: list[bool]
    improved: list[Count]
    global_best: Best
    global_worst: Best
    scores: list[list[Score] | None]


class Raised(_Schema):
    """What a run was first started with, if that was raised."""

    iterations: Count
    patience: Count


class Config(_Schema):
    """config.json: what was asked for. Beside these fields it has every setting."""

    experts: Annotated[list[str], Field(min_length=1)]
    sources: list[str] | None = None
    first: list[Count] | None = None
    """The experts that the first particles are; null if each is one of them."""
    base: str | None = None
    task: str | None = None
    dataset: str | None = None
    data: str | list[str] | None = None
    command: list[str] | None = None
    particles: Count | None = None
    seed: Count | None = None
    expert_products: list[list[Number | None]] | None = None
    dev_examples: Count | None = None
    test_examples: Count | None = None
    run: Literal["search", "token-swarm", "compare", "sweep", "study"] | None = None
    """The command."""
    directory: str | None = None
    iterations: Count | None = None
    patience: Count | None = None
    raised: Raised | None = None
    """With what iterations and patience the run was first started, if they were raised."""
    forced: list[str] = []
    versions: dict[str, str | None] | None = None
    computed_in: str | None = None
    served: Literal["merged", "slots", "mixture"] | None = None
    state_reason: str | None = None
    methods: str = ""
    ranges: dict[str, str] = {}
    reuse: list[str] | None = None
    seal: str | None = None


class RecordedConfig(Config):
    """config.json that a run goes on from: it names the command, and where the experts are."""

    run: Literal["search", "token-swarm", "compare", "sweep", "study"]
    sources: list[str]


class End(_Schema):
    """The best expert at the start, or the winner, and their scores."""

    particle: Count | None = None
    expert: str | None = None
    dev: Number | None = None
    confirm: Number | None = None
    test: Number | None = None


class Summary(_Schema):
    """summary.json: what was found. A resumed sweep or study goes by it."""

    start: End | None = None
    end: End | None = None
    mixture: dict[str, Number | None] | None = None
    """Expert → coefficient of the winner."""
    test_standard_error: dict[str, Number | None] | None = None
    iterations: Count | None = None
    stopped: str | None = None
    evaluations: Count | None = None
    prompts: Count | None = None
    tokens: Count | None = None
    reused_scores: Count | None = None
    skipped_examples: Count | None = None
    engine_idle_share: Number | None = None
    prompts_per_second: Number | None = None
    wall_seconds: Number | None = None
    seconds: Seconds | None = None
    candidates: list[dict[str, Any]] | None = None


class Ended(Summary):
    """summary.json of a search of a sweep or study that has ended."""

    name: str
    seed: Count
    particles: Count
    iterations: Count
    stopped: str
    evaluations: Count
    start: End
    end: End


class Group(_Schema):
    """Scores and votes of some rows on test."""

    scores: list[list[Number | None]]
    labels: list[list[str | Number | None]]


class TestScores(_Schema):
    """test_scores.json: every expert and particle on each test example."""

    exact: bool = True
    groups: dict[str, Group]


class Question(_Schema):
    """A test question on which the winner and the best expert differ."""

    example: Count
    prompt: str
    expected: str | None = None
    best_expert: str
    winner: str


class Counts(_Schema):
    """How many test questions changed, and how many did not."""

    gained: Count = 0
    lost: Count = 0
    both: Count = 0
    neither: Count = 0


class Answers(_Schema):
    """answers.json: test questions that changed."""

    split: str = "test"
    best_expert: str | None = None
    winner: str | None = None
    counts: Counts
    gained: list[Question]
    lost: list[Question]


class Known(_Schema):
    """known.json: what a policy was told of earlier runs."""

    mixtures: list[list[Number]]
    """[m][n] positions as coefficients of the experts."""
    utilities: list[Number]
    """[m] of each."""


SCHEMAS: dict[str, type[BaseModel]] = {
    "config.json": Config,
    "history.jsonl": Line,
    "summary.json": Summary,
    "test_scores.json": TestScores,
    "answers.json": Answers,
    "known.json": Known,
}
"""By file; the lines of history.jsonl are checked one by one."""
