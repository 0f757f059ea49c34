"""What the files of a run folder hold: one schema a file, checked once where it is read.

A file that a run wrote, of whatever state, fits; fields that are not named here are left alone. A schema says what the
report, a resumed run and the analyses take for granted, so that none of them meets a text where a number should be.
docs/reference/run-folder.md is printed from the schemas: the text below a field is its meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    """A global best or worst."""

    particle: int | None = None
    """Who found it."""
    utility: Number | None = None
    """Its utility."""


class Line(_Schema):
    """A line of history.jsonl: one iteration."""

    iteration: Count
    """0 is the initial evaluation."""
    utilities: list[Number | None]
    """[P], one a particle."""
    evaluated: list[bool] | None = None
    """[P], false where a particle kept its last utility."""
    bounded: list[dict[str, Number | None]] = []
    """Particles that were stopped early, after how many examples, with both bounds of their utility or its estimate."""
    without_score: list[Count] = []
    """Particles that were evaluated and have no score, since an answer gave NaN or infinity."""
    restarts: list[Count] = []
    """Particles that went back to their personal best."""
    improved: list[Count] = []
    """Particles with a new personal best."""
    global_best: Best | None = None
    """The best so far."""
    global_worst: Best | None = None
    """The worst so far."""
    step_length: Number | None = None
    """Of this iteration; null at the start."""
    global_best_mixture: list[Number] | None = None
    """[n], the best so far as coefficients of the experts."""
    mixtures: list[list[Number]] | None = None
    """[P][n], every position as coefficients of the experts."""
    scores: list[list[Score] | None] | None = None
    """[P][E], every particle on every dev example; null where none was needed, "nan" for a NaN."""
    prompts: Count | None = None
    """What the iteration cost, in prompts."""
    tokens: Count | None = None
    """The same in tokens."""
    engine_idle_share: Number | None = None
    """Share of the iteration in which the engine had nothing to do."""
    engines_lost: list[str] = []
    """A sentence for each engine of several that has ended in the iteration and was started anew."""
    seconds: Seconds | None = None
    """By phase: update, policy if there is one, load, generate, score, total."""


class RecordedLine(Line):
    """A line that a search goes on from: nothing of it may be missing."""

    evaluated: list[bool]
    improved: list[Count]
    global_best: Best
    global_worst: Best
    scores: list[list[Score] | None]


class ScoreLine(_Schema):
    """A line of scores.jsonl: one evaluation. Its last member, `crc`, is the CRC-32 of what is before it."""

    of: str
    """Names what was evaluated with: experts, base, data and the settings that scores depend on."""
    split: str
    """Of the examples."""
    position: str | None
    """Names the position; null where it has no name."""
    scores: list[Score] | None = None
    """One an example; null where none was needed, "nan" for a NaN."""
    answers: list[list[tuple[str, Count, Number | None, bool]]] | None = None
    """In their place, where answers were asked for: text, tokens, log-probability, greedy or not."""
    cost: Annotated[list[Count], Field(min_length=4, max_length=5)]
    """Evaluations, prompts, tokens, scores that were known, and of a token swarm passes of experts."""
    asked_by: str = Field(alias="for")
    """The search, or the method of a comparison."""
    iteration: Count | None = None
    """Of a search."""
    particle: Count | None = None
    """Of that iteration."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.scores is None) == (self.answers is None):
            raise ValueError("there are scores or answers")
        if (self.iteration is None) != (self.particle is None):
            raise ValueError("iteration and particle are given together")
        return self


class Raised(_Schema):
    """What a run was first started with, if that was raised."""

    iterations: Count
    """As it was."""
    patience: Count
    """As it was."""


class Config(_Schema):
    """config.json: what was asked for. Beside these fields it has every setting."""

    run: Literal["search", "token-swarm", "compare", "sweep", "study", "model_swarm"] | None = None
    """The command."""
    directory: str | None = None
    """The folder that it was started in."""
    command: list[str] | None = None
    """The words of a command that would repeat the run."""
    base: str | None = None
    """As given."""
    task: str | None = None
    """As given."""
    data: str | list[str] | None = None
    """As given."""
    dataset: str | None = None
    """The name of the data, by which prompts and limits are chosen."""
    data_read: list[str] | None = None
    """How the data were understood."""
    data_warnings: list[str] | None = None
    """What makes their scores worse measures."""
    experts: Annotated[list[str], Field(min_length=1)]
    """Names of the experts."""
    sources: list[str] | None = None
    """Where they were read."""
    first: list[Count] | None = None
    """The experts that the first particles are, by number; null if each is one of them."""
    dev_examples: Count | None = None
    """How many examples dev has."""
    test_examples: Count | None = None
    """How many examples test has."""
    confirm_examples: Count | None = None
    """How many were kept back, with `confirm`."""
    particles: Count | None = None
    """The setting."""
    seed: Count | None = None
    """The setting."""
    iterations: Count | None = None
    """The setting."""
    patience: Count | None = None
    """The setting."""
    budget: int | str | None = None
    """As given."""
    raised: Raised | None = None
    """With what iterations and patience the run was first started, if they were raised."""
    forced: list[str] = []
    """What was not as before when the run went on with `--force`."""
    served: Literal["merged", "slots", "mixture"] | None = None
    """How particles are served, with `serve="auto"`."""
    state_reason: str | None = None
    """Why `state` is what it is."""
    memory: dict[str, Any] | None = None
    """How many rows lie where, in bytes."""
    expert_products: list[list[Number | None]] | None = None
    """Inner products of the experts, for exact distances; null for very large experts."""
    objective: dict[str, Any] | None = None
    """Constants of the scoring, such as those of `reward`, and how answers were drawn."""
    weights: list[str] | None = None
    """Names of the content of the experts, so that a run goes on with the same."""
    base_files: str | None = None
    """The same of the base model."""
    examples: str | None = None
    """The same of the examples."""
    asks: str | None = None
    """The same of what is asked of a model."""
    versions: dict[str, str | None] | None = None
    """Of the packages that matter."""
    computed_in: str | None = None
    """Number type of the engine."""
    choose: str | None = None
    """How the winner is chosen."""
    final_test: bool | None = None
    """As given."""
    log: str | None = None
    """As given."""
    trace: str | None = None
    """As given."""
    reuse: list[str] | None = None
    """As given."""
    seal: str | None = None
    """That the user has given by themselves what would be imported, called or written elsewhere."""
    methods: str = ""
    """Of `compare`: names with commas."""
    ranges: dict[str, str] = {}
    """Of `sweep`: setting → lowest:highest."""


class RecordedConfig(Config):
    """config.json that a run goes on from: it names the command, and where the experts are."""

    run: Literal["search", "token-swarm", "compare", "sweep", "study"]
    sources: list[str]


class End(_Schema):
    """The best expert at the start, or the winner, and their scores."""

    particle: Count | None = None
    """Its number."""
    iteration: Count | None = None
    """Of the winner's position, 0 being the start."""
    chosen_by: Literal["best", "confirm", "posterior", "shrink"] | None = None
    """How the winner was chosen, see `--choose`."""
    expert: str | None = None
    """Its name, of an expert."""
    dev: Number | None = None
    """Its utility on dev."""
    confirm: Number | None = None
    """On the examples kept back, with `--confirm`."""
    test: Number | None = None
    """On test."""


class Expected(_Schema):
    """What a winner is expected to score on test, and an interval."""

    score: Number
    """Without the luck of the choice."""
    low: Number
    """The lower end of an interval for the test score."""
    high: Number
    """Its upper end."""
    level: Number
    """The share of runs whose test score should be in it."""


class Summary(_Schema):
    """summary.json: what was found. A resumed sweep or study goes by it."""

    name: str | None = None
    """The name of the trial, `search` for a search by itself."""
    start: End | None = None
    """The best initial expert."""
    end: End | None = None
    """The winner; `test` is the score of `global_best/`, read back from the disk."""
    candidates: list[dict[str, Any]] | None = None
    """With `--confirm`: the last candidates on dev and on the examples kept back."""
    expected_test: Expected | None = None
    """What the choice is expected to score on test, from dev alone; where the utility is the mean of the scores."""
    mixture: dict[str, Number | None] | None = None
    """Expert → coefficient of the winner; null with `randomness="coordinate"`."""
    export_rank: Count | None = None
    """With `export_rank`: the rank of `global_best/`."""
    export_error: Number | None = None
    """What that cut has lost of all update matrices (Frobenius norm, relative)."""
    test_standard_error: dict[str, Number | None] | None = None
    """Of `start` and `end`."""
    iterations: Count | None = None
    """How many there were."""
    stopped: str | None = None
    """Why it ended: `iterations`, `patience`, `budget`, or `interrupted` by a signal."""
    auto_timings: dict[str, Number | None] | None = None
    """Prompts a second of each serving mode, with `serve="auto"`."""
    evaluations: Count | None = None
    """What the search cost, in evaluations of a particle."""
    prompts: Count | None = None
    """The same in prompts."""
    tokens: Count | None = None
    """The same in tokens."""
    without_score: list[dict[str, Count]] | None = None
    """Iteration and particle of each evaluation without a score, since an answer gave NaN or infinity."""
    reused_scores: Count | None = None
    """Examples that were known already."""
    skipped_examples: Count | None = None
    """Examples that early stopping left out."""
    engine_idle_share: Number | None = None
    """Of the whole search."""
    prompts_per_second: Number | None = None
    """Of the whole search."""
    seconds: Seconds | None = None
    """By phase: setup, update, policy if there is one, load, generate, score, test, total."""
    wall_seconds: Number | None = None
    """Of the search itself, without start and tests, since it last went on."""
    ended: bool | None = None
    """Whether all that the run is to write is there."""


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
    """Some rows on test."""

    scores: list[list[Number | None]]
    """[rows][E]."""
    labels: list[list[str | Number | None]]
    """[rows][E], the choice that an answer names, or else its score."""


class TestScores(_Schema):
    """test_scores.json: every expert and particle on each test example."""

    exact: bool = True
    """False where the particles were mixed again, which leaves out the rounding of their moves."""
    groups: dict[str, Group]
    """`experts`, and the particles at the `start`, at their `best`, and at the `end`."""


class Question(_Schema):
    """A test question on which the winner and the best expert differ."""

    example: Count
    """Its number."""
    prompt: str
    """What was asked."""
    expected: str | None = None
    """The right answer, where the task has one."""
    best_expert: str
    """What the best expert said."""
    winner: str
    """What the winner said."""


class Counts(_Schema):
    """How many test questions changed, and how many did not."""

    gained: Count = 0
    """Right for the winner alone."""
    lost: Count = 0
    """Right for the best expert alone."""
    both: Count = 0
    """Right for both."""
    neither: Count = 0
    """Right for neither."""


class Answers(_Schema):
    """answers.json: test questions that changed."""

    split: str = "test"
    """Always `test`."""
    best_expert: str | None = None
    """Who is compared."""
    winner: str | None = None
    """With whom."""
    counts: Counts
    """How many examples."""
    gained: list[Question]
    """At most ten that the winner gets right and the best expert does not."""
    lost: list[Question]
    """At most five the other way round."""


class Method(_Schema):
    """What a method of a comparison has found."""

    dev: Number | None
    """Utility of its choice on dev."""
    test: Number | None
    """On test."""
    test_standard_error: Number | None
    """Of `test`."""
    test_scores: list[Number | None]
    """[E] on each test example."""
    evaluations: Count
    """What it took, in evaluations on dev."""
    prompts: Count
    """The same in prompts."""
    seconds: Number
    """The same in seconds."""
    recipe: Any
    """What its choice is made of."""


class Against(_Schema):
    """The paired bootstrap of Model Swarms and a method."""

    difference: Number | None
    """Test utility of Model Swarms minus that of the method; null where a score is no number."""
    interval: Annotated[list[Number | None], Field(min_length=2, max_length=2)]
    """The middle 95 % of it."""
    share: Number | None
    """Of the samples in which Model Swarms is ahead, ties by half."""

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        if self.difference is not None and None in (*self.interval, self.share):
            raise ValueError("interval and share are numbers where difference is one")
        return self


class Results(_Schema):
    """baselines.json: what each method of a comparison has found."""

    methods: dict[str, Method]
    """By name, in the order in which they ran."""
    against_model_swarms: dict[str, Against] = {}
    """By the name of the other method."""


class Known(_Schema):
    """known.json: what a policy was told of earlier runs."""

    mixtures: list[list[Number]]
    """[m][n], positions as coefficients of the experts."""
    utilities: list[Number]
    """[m], of each."""


SCHEMAS: dict[str, type[BaseModel]] = {
    "config.json": Config,
    "scores.jsonl": ScoreLine,
    "history.jsonl": Line,
    "summary.json": Summary,
    "answers.json": Answers,
    "test_scores.json": TestScores,
    "baselines.json": Results,
    "known.json": Known,
}
"""By file; the lines of history.jsonl and scores.jsonl are checked one by one."""
