"""The row of a mixture of experts, in the two spaces that `combine` names.

`factors`: A and B are mixed each by itself, so the row is an expert like the others: (Σ aᵢ Bᵢ)(Σ aⱼ Aⱼ).
`delta`: the update matrices are mixed, ΔW = s Σ aⱼ Bⱼ Aⱼ. That is one adapter whose rank is that of all experts
together: their A lie below each other, their B side by side, and a coefficient scales its expert's B.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modelswarms_fast.errors import InputError
from modelswarms_fast.ops import mix_
from modelswarms_fast.weights.adapters import LoraModule, ranks_and_alphas
from modelswarms_fast.weights.layout import Layout

if TYPE_CHECKING:
    from modelswarms_fast.weights.experts import Experts


def row_form(experts: Experts) -> Experts:
    """What the rows are that are served and exported: their layout, modules and config; of `delta` it has no rows."""
    if experts.combine == "factors":
        return experts
    count = len(experts.names)
    return of_ranks(experts, {module.name: sum(ranks_of(module, count)) for module in experts.modules})


def of_ranks(experts: Experts, ranks: dict[str, int]) -> Experts:
    """Adapters of the experts' modules with these ranks by module name, as which a row can be exported; no rows."""
    shapes = {spec.name: spec.shape for spec in experts.layout.specs}
    modules = tuple(replace(module, rank=ranks[module.name], ranks=()) for module in experts.modules)
    tensors = {}
    for module in modules:
        tensors[module.a] = torch.empty((module.rank, shapes[module.a][1]), device="meta")
        tensors[module.b] = torch.empty((shapes[module.b][0], module.rank), device="meta")
    layout = Layout.of(tensors, experts.layout.dtype)
    none = torch.empty((0, layout.size), dtype=layout.dtype)
    config = experts.config | ranks_and_alphas(modules)
    return replace(experts, layout=layout, modules=modules, config=config, rows=none, room=none, combine="factors")


def ranks_of(module: LoraModule, count: int) -> tuple[int, ...]:
    """The rank that each of `count` experts has in a module; 0 for one that lacks it."""
    return module.ranks or (module.rank,) * count


def mix_row(experts: Experts, mixture: Tensor) -> Tensor:
    """The row [D] of a mixture [n] of the experts, where their rows are; with `factors` an expert is not copied."""
    if experts.combine == "delta":
        return ProductRow(experts).mixed(mixture)
    ones = torch.nonzero(mixture).flatten().tolist()
    if len(ones) == 1 and mixture[ones[0]] == 1:
        return experts.rows[ones[0]]  # bit by bit, so that it has the name it has in a search
    row = torch.empty((1, experts.layout.size), dtype=experts.layout.dtype, device=experts.rows.device)
    mix_(row, experts.rows, mixture[None].to(row.device, torch.float32))
    return row[0]


class ProductRow:
    """A row in the layout of `row_form` for mixtures of update matrices. A is written once, B at each mixture."""

    def __init__(self, experts: Experts) -> None:
        rows, count, form = experts.rows, len(experts.names), row_form(experts)
        self._row = torch.zeros(form.layout.size, dtype=rows.dtype, device=rows.device)
        views, specs = form.layout.views(self._row), {spec.name: spec for spec in experts.layout.specs}
        self._scaled: list[tuple[Tensor, Tensor, slice]] = []
        """B of some experts in this row, the same in their rows, both [out, experts, rank], and which experts."""
        for module in experts.modules:
            a, b = (
                rows[:, spec.offset : spec.end].view(count, *spec.shape) for spec in (specs[module.a], specs[module.b])
            )
            ranks = ranks_of(module, count)
            ends = list(accumulate(ranks, initial=0))
            for one, (start, end) in zip(a, pairwise(ends), strict=True):
                views[module.a][start:end] = one[: end - start]
            if set(ranks) == {module.rank}:
                self._scaled.append((views[module.b].view(len(b[0]), count, -1), b.transpose(0, 1), slice(0, count)))
                continue
            for expert, (start, end) in enumerate(pairwise(ends)):
                if end > start:
                    part = b[expert, :, None, : end - start]
                    self._scaled.append((views[module.b][:, None, start:end], part, slice(expert, expert + 1)))

    def mixed(self, mixture: Tensor) -> Tensor:
        """The row [D] of a mixture [n], valid until the next call. Products are float32 and rounded once."""
        numbers = mixture.to(self._row.device, torch.float32)[:, None]
        for place, values, experts in self._scaled:
            torch.mul(values, numbers[experts], out=place)
        return self._row


def embed(model: Experts, experts: Experts) -> Tensor:
    """The row [D] of `row_form(experts)` that adds what a single adapter of the same modules adds, of lower rank or
    the same.

    Raises InputError for one that has no place there.
    """
    form = row_form(experts)
    row = torch.zeros(form.layout.size, dtype=form.layout.dtype)
    views, given = form.layout.views(row), model.layout.views(model.rows[0])
    places = {module.name: module for module in form.modules}
    for module in model.modules:
        place = places.get(module.name)
        shapes = [] if place is None else [(views[place.a].shape[1], len(views[place.b]))]
        if place is None or module.rank > place.rank or shapes != [(given[module.a].shape[1], len(given[module.b]))]:
            raise InputError(f"{model.sources[0]}: {module.name} has no place in a mixture of the experts: give theirs")
        views[place.a][: module.rank] = given[module.a]
        # The same scaling, but for the last bit of alpha / rank.
        share = module.scaling / place.scaling if place.scaling else 0.0
        views[place.b][:, : module.rank] = given[module.b] * (1.0 if abs(share - 1) < 1e-12 else share)
    return row


def truncate(form: Experts, row: Tensor, rank: int) -> tuple[Experts, Tensor, float]:
    """The best adapter of this rank or less for each module of a row [D]: its form, its row, and the error.

    The error is the Frobenius norm of what the update matrices of all modules lose, as a share of theirs, before the
    rounding to the row's type. A row that is not finite is given back as it is.
    """
    if form.layout.first_not_finite(row) is not None:
        return form, row, math.nan
    views = form.layout.views(row)
    shapes = {module.name: (*views[module.b].shape, views[module.a].shape[1]) for module in form.modules}
    small = of_ranks(form, {name: min(rank, *shape) for name, shape in shapes.items()})
    found = torch.zeros(small.layout.size, dtype=row.dtype)
    places, lost, whole = small.layout.views(found), 0.0, 0.0
    for module in small.modules:
        inner, right = torch.linalg.qr(views[module.a].double().cpu().t())
        outer, left = torch.linalg.qr(views[module.b].double().cpu())
        u, values, v = torch.linalg.svd(left @ right.t(), full_matrices=False)
        roots = values[: module.rank].sqrt()
        places[module.a].copy_(roots[:, None] * (v[: module.rank] @ inner.t()))
        places[module.b].copy_((outer @ u[:, : module.rank]) * roots)
        squares = (module.scaling * values) ** 2
        whole, lost = whole + float(squares.sum()), lost + float(squares[module.rank :].sum())
    return small, found, (lost / whole) ** 0.5 if whole else 0.0


def products_of_updates(experts: Experts) -> list[list[float]]:
    """[n, n] inner products of the experts' update matrices, in float64: ⟨BᵢAᵢ, BⱼAⱼ⟩ is the sum of (BᵢᵀBⱼ)∘(AᵢAⱼᵀ)."""
    count = len(experts.names)
    total = torch.zeros((count, count), dtype=torch.float64)
    specs = {spec.name: spec for spec in experts.layout.specs}
    for module in experts.modules:
        a, b = (
            experts.rows[:, spec.offset : spec.end].view(count, *spec.shape).to("cpu", torch.float64)
            for spec in (specs[module.a], specs[module.b])
        )
        b = b.transpose(1, 2)  # ranks first, as in A
        grams = [one.flatten(0, 1) @ one.flatten(0, 1).t() for one in (a, b)]
        both = (grams[0] * grams[1]).view(count, module.rank, count, module.rank)
        total += module.scaling**2 * both.sum(dim=(1, 3))
    products: list[list[float]] = total.tolist()
    return products
