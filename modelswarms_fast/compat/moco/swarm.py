"""MoCo's `Swarm` with its weights in memory: the same constructor, methods, files and random draws."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelswarms_fast.compat.moco.merging import check_shapes, copy_small_files, weighted, wide_sum
from modelswarms_fast.compat.moco.session import session, undisturbed
from modelswarms_fast.compat.moco_swarm import MocoConfig, MocoSwarm
from modelswarms_fast.compat.models import Model, read
from modelswarms_fast.config import LARGEST
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.free_memory import free_host_memory
from modelswarms_fast.weights.union import widest

SCRATCHPAD = "utility_scratchpad.json"


class Swarm:
    """Models that move: `get_model_paths` says where they are, `update` moves them by their scores.

    Rows of the models are held in memory. Their folders have all small files, and are served by this package's
    `distributed_generation`; files of weights are written at `clean_up` for the best model, at the end of the process
    for what is left, and when `moco.write(folder)` asks for it.

    With `fast_merge` adapters move as in MoCo: each product and sum is rounded to their number type. Without it models
    move by the same formula, which is computed in float32; full models are kept in float16. MoCo divides by sums of
    weights that are 0 there, so that all its weights become NaN.

    Random numbers come from the module `random`, in MoCo's order.

    Raises:
        InputError: a model cannot be read or does not fit the others, a setting is out of range, or there is too little
            memory; nothing is changed on the disk then.
        NotImplementedError: another starting_velocity_mode than "random".
    """

    def __init__(
        self,
        swarm_base_path: str,
        model_paths: Sequence[str],
        base_model: str | None,
        fast_merge: bool | int,
        starting_velocity_mode: str,
        weight_randomness: bool | int,
        inertia: float,
        cognitive_coeff: float,
        social_coeff: float,
        repel_coeff: float,
        step_length: float,
        repel_term: bool | int,
        step_length_factor: float,
        minimum_step_length: float,
        gpus: Sequence[int],
        patience: int,
        restart_patience: int,
    ) -> None:
        """`base_model` and `gpus` have no effect: sums of weights need neither."""
        if starting_velocity_mode != "random":
            raise NotImplementedError(f"starting_velocity_mode is {starting_velocity_mode!r}; only 'random' is known.")
        self.swarm_base_path, self.model_paths, self.base_model = swarm_base_path, list(model_paths), base_model
        self.fast_merge, self.starting_velocity_mode = fast_merge, starting_velocity_mode
        self.weight_randomness, self.repel_term = weight_randomness, repel_term
        self.inertia, self.cognitive_coeff, self.social_coeff = inertia, cognitive_coeff, social_coeff
        self.repel_coeff, self.step_length, self.step_length_factor = repel_coeff, step_length, step_length_factor
        self.minimum_step_length, self.gpus = minimum_step_length, gpus
        self.patience, self.restart_patience = patience, restart_patience
        config = MocoConfig(
            weight_randomness=bool(weight_randomness),
            inertia=inertia,
            cognitive_coeff=cognitive_coeff,
            social_coeff=social_coeff,
            repel_coeff=repel_coeff,
            repel_term=bool(repel_term),
            step_length=step_length,
            step_length_factor=step_length_factor,
            minimum_step_length=minimum_step_length,
            patience=patience,
            restart_patience=restart_patience,
            iterations=LARGEST,
        )
        self._models = session().models
        with undisturbed():
            self._forms = self._read()
        self._policy = MocoSwarm(config, len(self.model_paths))
        self.restart_counter = self._policy.restart_counter
        if not fast_merge:
            print(
                "fast_merge is off: MoCo's own merge gives NaN here, so the intended sum is computed in float32.",
                file=sys.stderr,
            )
        rows = [form.weights() for form in self._forms]
        # Rows are never written to: what is best is one of them, not a copy.
        self._x, self._p = list(rows), list(rows)
        self._v = [
            self._sum((-1.0, 1.0), (row, rows[partner]))
            for row, partner in zip(rows, self._policy.partners, strict=True)
        ]
        self._g, self._w = self._policy.global_best_particle, self._policy.global_worst_particle
        self._g_row, self._w_row = rows[self._g], rows[self._w]
        self._copied: dict[str, int] = {}
        """Folder of a best → the model whose small files it has."""
        self.utility_scratchpad: dict[str, Any] = {"g": None, "g_worst": None, "g_history": []}
        for i in range(len(rows)):
            self.utility_scratchpad |= {f"model_{i}_now": None, f"model_{i}_best": None, f"model_{i}_history": []}
        self._make_folders()
        self._hold()

    def update(self, scores: Sequence[float]) -> bool:
        """Record the score of each model, higher is better, and move all models; whether the search is over.

        When it is over, nothing moves.

        Raises:
            InputError: not one score for each model.
        """
        if len(scores) != len(self.model_paths):
            raise InputError(f"{len(scores)} scores are given for {len(self.model_paths)} models; give one for each.")
        found, pad = self._policy.tell(scores), self.utility_scratchpad
        for i, score in enumerate(scores):
            pad[f"model_{i}_now"] = score
            pad[f"model_{i}_history"].append(score)
            if found.improved[i]:
                pad[f"model_{i}_best"], self._p[i] = score, self._x[i]
        if found.global_best is not None:
            pad["g"], self._g, self._g_row = scores[found.global_best], found.global_best, self._x[found.global_best]
        if found.global_worst is not None:
            pad["g_worst"] = scores[found.global_worst]
            self._w, self._w_row = found.global_worst, self._x[found.global_worst]
        pad["g_history"].append(pad["g"])
        self._write_scratchpad()
        over = self._policy.stopped() is not None
        if not over:
            self._move()
        self._hold()
        return over

    def get_model_paths(self) -> list[str]:
        """The folder of each model's position."""
        return [os.path.join(self.swarm_base_path, f"model_{i}", "now") for i in range(len(self.model_paths))]

    def get_global_best_path(self) -> str:
        """The folder of the best position so far."""
        return os.path.join(self.swarm_base_path, "global_best")

    def clean_up(self) -> None:
        """Write the best model's weights, and remove all but its folder and the scratchpad."""
        self._models.write(self.get_global_best_path())
        for entry in os.scandir(self.swarm_base_path):
            if entry.name in ("global_best", SCRATCHPAD):
                continue
            if entry.is_dir(follow_symlinks=False):
                self._models.drop(entry.path)
                shutil.rmtree(entry.path)
            else:
                os.remove(entry.path)

    def _move(self) -> None:
        moves = self._policy.ask()
        for i, (a, b, c, d) in enumerate(self._policy.coefficients.tolist()):
            if moves.restarts[i]:
                self._x[i] = self._p[i]
                self._v[i] = self._sum((0.0,), (self._x[i],))
            x = self._x[i]
            self._v[i] = self._sum((a, b, c, -d, -b - c + d), (self._v[i], self._p[i], self._g_row, self._w_row, x))
            self._x[i] = self._sum((1.0, moves.step_length), (x, self._v[i]))
        self.step_length = self._policy.step_length

    def _sum(self, weights: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
        return (weighted if self.fast_merge else wide_sum)(weights, rows)

    # files

    def _read(self) -> list[Model]:
        """The models in one number type, checked against each other, before anything is changed."""
        base = Path(self.swarm_base_path).resolve()
        folders = [self._models.folder(path) for path in self.model_paths]
        for folder in folders:
            if folder.is_relative_to(base):
                raise InputError(f"{folder} lies in {self.swarm_base_path}, which is emptied first; move one of them.")
        if not base.parent.is_dir():
            raise InputError(f"{base.parent}, where the swarm's folder is to lie, does not exist; make it.")
        found = [self._models.find(folder) for folder in folders]
        first = found[0].form
        for path, model in zip(self.model_paths, found, strict=True):
            if model.form.kind != first.kind:
                raise InputError(f"{path} and {self.model_paths[0]} are an adapter and a full model; give one kind.")
            check_shapes(path, _shapes(model.form), self.model_paths[0], _shapes(first))
        full = first.kind == "full"
        if self.fast_merge and full:
            raise InputError(f"fast_merge merges adapters, and {self.model_paths[0]} is a full model; turn it off.")
        dtype = torch.float16 if full else widest(model.form.layout.dtype for model in found)
        need = (3 * len(found) + 2) * first.layout.size * dtype.itemsize
        if need > (free := free_host_memory()):
            raise InputError(f"{len(found)} models need {need:,} bytes, and {free:,} are free; give fewer models.")
        return [model if model.form.layout.dtype == dtype else read(model.folder, dtype=dtype) for model in found]

    def _make_folders(self) -> None:
        base = Path(self.swarm_base_path)
        self._models.drop(base)
        if base.exists():
            shutil.rmtree(base)
        base.mkdir()
        for i, model in enumerate(self._forms):
            for name in ("personal_best", "now", "velocity"):
                self._copy(model, base / f"model_{i}" / name)
        self._write_scratchpad()

    def _hold(self) -> None:
        """Serve the rows as they are now for their folders."""
        base = Path(self.swarm_base_path)
        for i, model in enumerate(self._forms):
            for name, rows in (("personal_best", self._p), ("now", self._x), ("velocity", self._v)):
                self._models.hold(base / f"model_{i}" / name, rows[i], model)
        for name, i, row in (("global_best", self._g, self._g_row), ("global_worst", self._w, self._w_row)):
            if self._copied.get(name) != i:
                self._copy(self._forms[i], base / name)
                self._copied[name] = i
            self._models.hold(base / name, row, self._forms[i])
        if session().files == "every":
            self._models.write(base)

    @staticmethod
    def _copy(model: Model, folder: Path) -> None:
        copy_small_files(model.folder, folder, model.form.layout.dtype if model.form.kind == "full" else None)

    def _write_scratchpad(self) -> None:
        place = Path(self.swarm_base_path, SCRATCHPAD)
        new = place.with_name(f".{SCRATCHPAD}.{secrets.token_hex(8)}")
        new.write_text(json.dumps(self.utility_scratchpad, indent=4))
        os.replace(new, place)


def _shapes(form: Experts) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in form.layout.specs}
