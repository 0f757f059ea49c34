"""Tasks of lm-eval, by its own definitions: its documents, prompts, few-shot examples, filters, metrics and groups.

Only the package lm-eval is needed, and what a task's data needs: a YAML with local data works without a network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.evaluation.objectives.data import Wanted
from modelswarms_fast.evaluation.objectives.lm_eval_code import use_sandbox, without_code
from modelswarms_fast.evaluation.objectives.lm_eval_requests import ask_of, choice_of, requests_of, score
from modelswarms_fast.evaluation.objectives.multitask import join
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

SEED = 1234  # of few-shot examples, lm-eval's own default
_ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
_SHARES = (*_ACCURACIES, "exact_match")
_SUPPORTED = ("loglikelihood", "multiple_choice", "generate_until")


def load(path: Path | None, wanted: Wanted) -> Utility:
    """The utility of the task, group or tag after "lm_eval:". path: a YAML file, or a folder with YAML files, beside
    lm-eval's own.

    Dev is the task's validation split, or else that of its few-shot examples, or else training; test is its test split,
    or validation where there is none; of the only split there is, dev gets the first half and test the second. The
    utility's `dataset` names both. Options: `metric`, one that lm-eval averages over documents and that is better when
    higher (default: the task's first); `filter`, of several the one whose results count (default: the first);
    `num_fewshot` examples before each question, in place of the task's own number; `functions`, "yes" where the code
    of a YAML file of the user may run.

    The utility of a group is the mean of its tasks' as its `aggregate_metric_list` says: each weighs as much as it has
    documents, or with `weight_by_size: false` as much as any other. Limits apply to each task. Raises InputError.
    """
    name = wanted.task.partition(":")[2]
    wanted.check_options("metric", "filter", "num_fewshot", "functions")
    trusted = path is None or wanted.choice("functions", "no", "yes") == "yes"
    with contextlib.chdir(_folder(path) or "."):  # data files of a YAML are beside it
        tasks, aggregates = _find(name, path, trusted)
    for each, task in tasks.items():
        _check(task, each)
        _set_shots(task, each, wanted)
    metric = _metric(tasks, aggregates, wanted)
    aggregate = next((one for one in aggregates if one.metric == metric), None)
    chosen = _filter(tasks, aggregate, wanted)
    utilities = [_load_one(task, each, metric, chosen, wanted) for each, task in tasks.items()]
    if len(utilities) == 1:
        return utilities[0]
    by_size = aggregate is None or aggregate.weight_by_size
    return join(wanted.task, utilities, None if by_size else [1.0] * len(utilities), "mean")


def _load_one(task: Any, name: str, metric: str, chosen: str, wanted: Wanted) -> Utility:
    """The utility of one task of lm-eval, by this metric of what this filter leaves."""
    docs, origin, names = _splits(task, name)
    examples: dict[str, list[dict[str, Any]]] = {}
    asks: dict[str, list[tuple[Ask, ...]]] = {}
    for split, some in docs.items():
        with _failing(name):
            task.set_fewshot_seed(SEED)
            own = names[split] == _source_of_shots(task)
            some = some[: wanted.limits.get(split)]
            examples[split] = [{"doc": doc} for doc in some]
            requests = [requests_of(task, doc, index, own=own) for index, doc in enumerate(some)]
            asks[split] = [tuple(ask_of(one, name, wanted.max_tokens) for one in asked) for asked in requests]

    def score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[Any]:
        return [score(task, metric, chosen, *pair) for pair in zip(examples, answers, strict=True)]

    def choice(example: dict[str, Any], answers: Sequence[Answer]) -> int:
        return choice_of(task, metric, example, answers)

    dataset = f"{name} (dev: {origin['dev']}, test: {origin['test']}; {metric})"
    score_range = (0.0, 1.0) if metric in _SHARES else None
    own = task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results)
    return Utility(
        wanted.task,
        dataset,
        examples,
        asks,
        score_examples,
        score_range=score_range,
        choice=choice if own and metric in _ACCURACIES else None,
    )


@contextlib.contextmanager
def _failing(name: str, config: Any = None) -> Iterator[None]:
    """Whatever lm-eval, the data sets or a task's own code raise is one sentence; `config` of the task, if known."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        data = f" of the data set {config['dataset_path']}" if config and config.get("dataset_path") else ""
        raise InputError(
            f"lm-eval cannot make the task {name}{data} ({type(error).__name__}: {reason}); correct its YAML and data, "
            "or see that its data set can be downloaded"
        ) from error


def _folder(path: Path | None) -> Path | None:
    if path is None:
        return None
    if not path.exists():
        raise InputError(f"cannot read {path}; give a YAML file of lm-eval, or a folder with some")
    return path if path.is_dir() else path.parent


def _find(name: str, path: Path | None, trusted: bool) -> tuple[dict[str, Any], list[Any]]:
    """The tasks of this name, several of a group or tag, and how a group aggregates their metrics.

    Not `trusted`, a task has no code but lm-eval's own.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"lm-eval cannot be imported ({short(error)}); install modelswarms-fast[objectives], or choose another task"
        ) from error
    with _failing(name):
        # lm-eval's own thousands are only listed where the user's folder does not have the task.
        here = None if path is None else TaskManager(include_path=".", include_defaults=False)
        manager = here if here is not None and name in here.all_tasks else TaskManager(include_path=path and ".")
        if name not in manager.all_tasks:
            raise InputError(
                f"lm-eval has no task {quoted(name)}; choose one that it lists (lm-eval ls tasks), or give the"
                " folder of its "
                "YAML as the data"
            )
    with _failing(name, manager.task_index[name].cfg), contextlib.nullcontext() if trusted else without_code():
        use_sandbox()
        found = manager.load(name)
    if not found["tasks"]:
        raise InputError(f"{name} of lm-eval holds no task; give it some")
    group = found.get("groups", {}).get(name)
    return found["tasks"], list((group and group.aggregate_metric_list) or [])


def _check(task: Any, name: str) -> None:
    """Raise InputError for what is not supported."""
    if task.OUTPUT_TYPE not in _SUPPORTED:
        raise InputError(f"{name} of lm-eval is of type {task.OUTPUT_TYPE}; choose one of {', '.join(_SUPPORTED)}")
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"{name} of lm-eval needs images or sound, which are not supported; choose a task of texts")
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(f"{name} of lm-eval runs code that the model writes, which is not done here; choose another")


def _set_shots(task: Any, name: str, wanted: Wanted) -> None:
    """Ask with as many few-shot examples as are wanted. lm-eval itself leaves a task alone that says 0."""
    if "num_fewshot" not in wanted.options:
        return
    shots = wanted.whole("num_fewshot", 0, least=0)
    if task.config.num_fewshot == 0 and shots:
        raise InputError(f"num_fewshot is {shots}, but the YAML of {name} sets it to 0; leave one of them out")
    task.set_config(key="num_fewshot", value=shots)


def _metric(tasks: Mapping[str, Any], aggregates: Sequence[Any], wanted: Wanted) -> str:
    """The metric that counts, which all tasks have: of those that a group aggregates, if it says."""
    from lm_eval.api.metrics import mean

    able: list[str] = []
    for number, task in enumerate(tasks.values()):
        higher = task.higher_is_better()
        means = [name for name, reduce in task.aggregation().items() if reduce is mean and higher.get(name, True)]
        able = means if number == 0 else [name for name in able if name in means]
    named = [one.metric for one in aggregates]
    able = [name for name in named if name in able and _averages(aggregates, name)] if named else able
    if not able:
        raise InputError(
            f"{wanted.task} has no metric that is a mean over documents, better when higher"
            + (", and common to its tasks" if len(tasks) > 1 else "")
            + "; choose another task"
        )
    return wanted.choice("metric", *able)


def _averages(aggregates: Sequence[Any], metric: str) -> bool:
    """Whether a group takes the mean of this metric, not a function of its own."""
    return all(one.aggregation == "mean" for one in aggregates if one.metric == metric)


def _filter(tasks: Mapping[str, Any], aggregate: Any, wanted: Wanted) -> str:
    """The filter whose results count, which all tasks have."""
    each = [[one.name for one in task._filters] for task in tasks.values()]
    able = [name for name in each[0] if all(name in names for names in each)]
    if aggregate is not None and aggregate.filter_list:
        able = [name for name in aggregate.filter_list if name in able]
    if not able:
        raise InputError(f"the tasks of {wanted.task} have no filter in common; choose one of them")
    return wanted.choice("filter", *able)


def _source_of_shots(task: Any) -> str | None:
    """The split of the data that few-shot examples are from."""
    config = task.config
    found: str | None = task.fewshot_cfg.split or config.training_split or config.validation_split or config.test_split
    return found


def _splits(task: Any, name: str) -> tuple[dict[str, list[Any]], dict[str, str], dict[str, str]]:
    """Documents of dev and test, where they are from in words, and the split of the data that is."""
    config, makers = task.config, {"test": task.test_docs, "validation": task.validation_docs}
    makers["training"] = task.training_docs
    kept: dict[str, tuple[str, Callable[[], Any]]] = {}
    """The split's name in the data → what makes its documents."""
    for kind, made in makers.items():
        split = getattr(config, f"{kind}_split")
        if split is not None and all(split != other for other, _ in kept.values()):
            kept[kind] = (split, made)
    few = task.fewshot_cfg.split
    if few is not None and all(few != other for other, _ in kept.values()):
        kept["fewshot"] = (few, task.fewshot_docs)
    order = [kind for kind in ("test", "validation", "fewshot", "training") if kind in kept]
    if not order:
        raise InputError(f"{name} of lm-eval names no split of its data; give its YAML a test_split")
    with _failing(name):
        if len(order) == 1:
            split, make = kept[order[0]]
            every = list(make())
            middle = len(every) // 2
            docs = {"dev": every[:middle], "test": every[middle:]}
            origin = {"dev": f"first half of {split}", "test": f"second half of {split}"}
            names = {"dev": split, "test": split}
        else:
            used = {"test": order[0], "dev": order[1]}
            docs = {split: list(kept[kind][1]()) for split, kind in used.items()}
            origin = names = {split: kept[kind][0] for split, kind in used.items()}
    for split, some in docs.items():
        if not some:
            raise InputError(f"{name} of lm-eval has no documents for {split} ({origin[split]}); choose another task")
    return docs, origin, names
