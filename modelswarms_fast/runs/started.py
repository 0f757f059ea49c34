"""What a run was started with, in the config.json of its folder: what it goes on with, and what must not change.

Every command that writes a run folder has it for itself while it runs (`run_in`), says in config.json what it was
started with, and writes its scores into scores.jsonl as they come. Going on is the same command with the same folder:
what is known is not evaluated again, and all else repeats to the bit.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from modelswarms_fast.config import EngineConfig, parse_budget
from modelswarms_fast.engines.start import dtype_of
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.policies import libraries_of
from modelswarms_fast.records import checks, run_folder, schemas
from modelswarms_fast.records.score_file import ScoreFile
from modelswarms_fast.records.stopping import how_to_go_on
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.trust import policy_of, seal_of

RAISED, BUDGET = ("iterations", "patience"), "budget"
"""Settings that may be raised when a run goes on; a budget that of a search alone."""

# What may be another when a run goes on: it decides no number, or only how much is run. Sums in another order have
# other last digits.
_FREE = {
    "at_once", "choose", "command", "data_read", "data_warnings", "device_memory", "directory", "evaluations",
    "expert_products", "final_test", "forced", "host_memory", "log", "memory", "methods", "minutes", "objective",
    "raised", "reuse", "seal", "searches", "seeds", "served", "spill", "state_reason", "trace",
}  # fmt: skip
# What may have changed on the disk or in the environment since, and follows from nothing that was asked for.
_CHANGES = ("weights", "base_files", "examples", "asks", "computed_in", "versions")
# What follows from the data.
_OF_DATA = {"dataset", "dev_examples", "test_examples", "confirm_examples"}
_SCORED_WITH = (
    "weights", "base_files", "examples", "asks", "computed_in", "task", "options", "scoring", "max_tokens",
    "temperature", "top_p", "samples", "pass_k", "sample_seed", "engine", "serve", "dtype", "row_dtype", "state",
    "combine", "max_model_len", "tensor_parallel", "engine_options",
)  # fmt: skip
"""What the score of a position depends on, beside the position."""
_WORDS = {
    "weights": "experts with other weights",
    "base_files": "other files of the base model",
    "examples": "other data",
    "asks": "other data",
}


def environment(base: Path | None, engine: EngineConfig, policy: str = "swarm") -> dict[str, Any]:
    """What the numbers of a run depend on that no setting says: versions, and what an engine computes in."""
    names = ("modelswarms_fast", "torch", "transformers") + (("vllm",) if engine.engine == "vllm" else ())
    names += libraries_of(policy)
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a clone
            found[name] = None
    return {"versions": found, "computed_in": engine.dtype if base is None else dtype_of(base, engine)}


class Run:
    """A run folder that this process has for itself."""

    def __init__(self, folder: Path, name: str, known: Mapping[str, Any] | None, *, clear: bool) -> None:
        """`known`: the config.json that the run goes on from. `clear`: an earlier run is removed when this begins."""
        self.folder, self.name, self._known, self._clear = folder, name, known, clear
        self.config: dict[str, Any] = {}
        """The content of config.json."""
        self.scores: ScoreFile | None = None
        self._reuse: list[str] = []

    @property
    def goes_on(self) -> bool:
        """Whether there is something that it goes on from."""
        return self._known is not None

    @property
    def first_patience(self) -> int:
        """The patience that the run was first started with, by which its particles restart."""
        return int((self.config.get("raised") or self.config)["patience"])

    @property
    def forced(self) -> dict[str, list[str]]:
        """What has changed since the run was started, for summary.json; nothing if nothing has."""
        return {name: self.config[name] for name in ("forced",) if name in self.config}

    def refuse_ended(self) -> None:
        """Raises InputError if all that the run is to write is there."""
        path = self.folder / run_folder.SUMMARY
        if self._known is None or not path.exists() or not run_folder.read_json(path).get("ended"):
            return
        if all(self._known.get(name) == self.config.get(name) for name in (*RAISED, BUDGET)):
            raise InputError(
                f"the run in {self.folder} has ended; there is nothing to resume unless iterations, patience or its "
                "budget are raised."
            )

    def check(self, config: Mapping[str, Any], *, force: bool = False, reuse: Sequence[str | Path] = ()) -> None:
        """Say what the run is started with, before an engine is; the rest of config.json may follow (`add`).

        Args:
            config: all that decides the run's numbers.
            force: go on although something has changed.
            reuse: other run folders whose scores are used.

        Raises:
            InputError: the folder's run was started with something else, or one of `reuse` was.
        """
        self.config = run_folder.to_json_types({"run": self.name} | dict(config) | {"directory": str(Path.cwd())})
        self.config |= seal_of(self.config)
        self._reuse = [str(one) for one in reuse]
        if self._reuse:
            self.config["reuse"] = self._reuse
        for one in self._reuse:
            self._check_reused(Path(one))
        if self._known is not None:
            # What the settings left open stays as it was found.
            self.config |= {name: self._known[name] for name in ("state_reason", "served") if name in self._known}
            self.config |= going_on(self.folder, self._known, self.config, force=force)

    def begin(self) -> ScoreFile:
        """Write config.json, and open the scores; an earlier run that is replaced is removed. Raises InputError."""
        if self._clear:
            run_folder.clear_run(self.folder)
        run_folder.begin_run(self.folder)
        summary = self.folder / run_folder.SUMMARY
        if self._known is not None and summary.exists():  # until it is replaced
            run_folder.write_json(summary, run_folder.read_json(summary) | {"ended": False})
        run_folder.write_json(self.folder / run_folder.CONFIG, self.config)
        self.scores = ScoreFile(self.folder, digest_of(self.config), self._reuse)
        return self.scores

    def add(self, facts: Mapping[str, Any]) -> None:
        """Say in config.json what is known only once the engine has started. Raises InputError."""
        self.config |= run_folder.to_json_types(dict(facts))
        run_folder.write_json(self.folder / run_folder.CONFIG, self.config)

    def serve(self, experiment: Experiment, stack: ExitStack) -> None:
        """Begin, and start the engine of an experiment; it ends with the stack. Raises InputError."""
        experiment.open_scores, experiment.served = self.begin, self.known("served")
        experiment.why_state = self.known("state_reason") or experiment.why_state
        stack.enter_context(experiment)
        self.add({"served": experiment.engine.serve})
        keep_data(self.folder, experiment.utility)

    def known(self, name: str) -> Any:
        """What config.json said of this when the run was cut; None if nothing."""
        return None if self._known is None else self._known.get(name)

    def _check_reused(self, other: Path) -> None:
        known = run_folder.read_json(other / run_folder.CONFIG, "give the folder of a run with --reuse")
        for name in _SCORED_WITH:
            if known.get(name) != self.config.get(name):
                what = _WORDS.get(name, f"another {name}")
                raise InputError(f"the scores of {other} are of {what}, so they cannot be reused; leave --reuse out")


@contextmanager
def run_in(folder: str | Path, name: str, *, overwrite: bool = False, resume: bool = False) -> Iterator[Run]:
    """Have a run folder for one process until the block ends; nothing is written into it yet.

    Args:
        folder: made if it is missing.
        name: of the command.
        overwrite: replace an earlier run.
        resume: go on with the run of the folder, or begin it if nothing of it is there.

    Raises:
        InputError: another process has the folder, or it holds something else than is said.
    """
    folder = Path(folder)
    run_folder.check_name(folder)
    if resume and overwrite:
        raise InputError("overwrite and resume contradict each other; give one of them.")
    with run_folder.locked(folder):
        run_folder.check_links(folder)
        known = None
        if resume and (folder / run_folder.CONFIG).exists():
            known = read_config(folder)
            if known.get("run") != name:
                raise InputError(f"{folder} holds a {known['run']}, not a {name}; choose another folder")
            run_folder.check_listed(folder)
        else:
            run_folder.check_run_folder(folder, overwrite)
        run = Run(folder, name, known, clear=overwrite)
        try:
            yield run
        except BaseException as error:
            if run.scores is not None:
                error.add_note(how_to_go_on(folder))
            raise
        finally:
            if run.scores is not None:
                run.scores.close()


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json of a run folder says. Raises InputError for one that no run wrote."""
    path = folder / run_folder.CONFIG
    config = run_folder.read_json(path)
    if "run" not in config:
        raise InputError(f"{path} was written by no run that can go on; give the folder of a run.")
    if config["run"] == "model_swarm":
        raise InputError(f"{folder} holds a run of model_swarm's flags, which cannot go on; start it again.")
    checks.check(schemas.RecordedConfig, config, path)
    return config


def keep_data(folder: Path, utility: Utility) -> None:
    """Write the examples that were divided here, or are from the Hub, as files that can be given as data again.

    So are those that came from this folder, of which an earlier run was just removed. Raises InputError.
    """
    if any(one.kept or Path(one.path).absolute().parent == folder.absolute() for one in utility.data):
        names = (
            [run_folder.DATA] if len(utility.data) == 1 else [f"data_{n + 1}.json" for n in range(len(utility.data))]
        )
        for name, one in zip(names, utility.data, strict=True):
            run_folder.write_json(folder / name, one.content)


def going_on(
    folder: Path, known: Mapping[str, Any], config: Mapping[str, Any], *, force: bool = False
) -> dict[str, Any]:
    """What config.json says further of a run that goes on: `raised` settings, and what was `forced`.

    Raises InputError where it was started with something else.
    """
    for name in sorted((config.keys() | known.keys()) - {*_FREE, *_CHANGES, *RAISED, *_OF_DATA}):
        if config.get(name) != known.get(name) and not _raised_budget(name, known, config):
            what = f"{folder} holds a {known.get('run')} with other settings"
            raise InputError(f"{what} ({name} differs); leave it as it was, or choose another folder")
    changed = changes_of(known, config)
    if changed and not force:
        raise InputError(
            f"the run in {folder} was started with {', '.join(changed)}; restore that, or go on with --force"
        )
    found: dict[str, Any] = {}
    for name in RAISED:
        if (config.get(name) or 0) < (known.get(name) or 0):
            raise InputError(
                f"{name} is {config.get(name)}, less than the {known[name]} of the run in {folder}; give no less."
            )
    first = known.get("raised") or {name: known.get(name) for name in RAISED}
    if any(config.get(name) != first[name] for name in RAISED):
        found["raised"] = first
    if changed or known.get("forced"):
        found["forced"] = [*known.get("forced", ()), *changed]
    return found


def _raised_budget(name: str, known: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether this is the budget of a search, and it is now more of the same, or none."""
    if name != BUDGET or config.get("run") != "search" or known.get(BUDGET) is None:
        return False
    before, now = parse_budget(known[BUDGET]), config.get(BUDGET)
    after = before if now is None else parse_budget(now)
    return after.unit == before.unit and after.amount >= before.amount


def changes_of(known: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What is not what it was when the run was started, in words. Raises InputError if it cannot go on with that."""
    found = [words for name, words in _WORDS.items() if known.get(name) != config.get(name)]
    then, now = known.get("versions") or {}, config["versions"]
    found += [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]
    if known.get("computed_in") != config["computed_in"]:
        found.append(f"an engine in {known.get('computed_in')} (now {config['computed_in']})")
    for name in ("dev_examples", "confirm_examples"):
        if known.get(name) != config.get(name):
            raise InputError(
                f"the run was started with {known.get(name)} {name.replace('_', ' ')} and there are {config.get(name)} "
                "now; restore the data, or choose another folder"
            )
    return list(dict.fromkeys(found))


def digest_of(config: Mapping[str, Any]) -> str:
    """Names what positions are scored with, so that scores of something else are not taken for these."""
    facts = json.dumps([config.get(name) for name in _SCORED_WITH], sort_keys=True)
    return hashlib.blake2b(facts.encode(errors="backslashreplace"), digest_size=16).hexdigest()


def check_directory(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on from elsewhere where what the run was given is named from the folder that it was started in.

    Raises InputError.
    """
    directory = config.get("directory")
    if not isinstance(directory, str) or Path(directory) == Path.cwd():
        return
    data = config.get("data")
    given = [*config.get("sources", ()), config.get("base"), *(data if isinstance(data, list) else [data])]
    names = [str(one) for one in given if isinstance(one, str)]
    local = any(Path(directory, one).exists() and not Path(one).is_absolute() for one in names)
    if local or ":" in f"{config.get('task')} {policy_of(config)}":
        where = shlex.quote(directory)
        raise InputError(
            f"the run was started in {directory}; go on there: cd {where} && modelswarms-fast resume "
            f"{shlex.quote(str(folder.absolute()))}"
        )
