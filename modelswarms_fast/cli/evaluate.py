"""`evaluate`: the score of one model."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from modelswarms_fast.cli.dry_run import show_dry_run
from modelswarms_fast.cli.options import Inputs, settings
from modelswarms_fast.config import EngineConfig, TaskConfig

# Of the engine's settings, those that matter to one model.
ENGINE = ("engine", "engines", "tensor_parallel", "dtype", "max_model_len", "max_num_seqs", "engine_options")


@settings(Inputs, TaskConfig, EngineConfig, only=ENGINE)
def evaluate_command(
    model: Annotated[str, typer.Argument(help="An adapter folder, a full checkpoint, or the base itself.")],
    split: Annotated[Literal["dev", "test"], typer.Option(help="Examples to score it on.")] = "test",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent and what it would take; start nothing.")
    ] = False,
    **given: Any,
) -> None:
    """Score one model on a split and print the result as JSON."""
    from modelswarms_fast.records.run_folder import to_json_types
    from modelswarms_fast.runs.evaluate import evaluate

    if dry_run:
        show_dry_run(evaluate(model, split=split, dry_run=True, **given))
        return
    print(json.dumps(to_json_types(evaluate(model, split=split, **given)), indent=2))
