"""The products of a layer where update matrices are mixed: those of all experts at once, for all tokens of a step.

h = x Aᵀ for the A of all experts below each other, each of its numbers times its token's coefficient of that expert,
times the B of all experts side by side. No weights are mixed, so the work does not depend on how many particles the
tokens belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from modelswarms_fast.engines.vllm.low_rank import LowRank, LowRankPart, TokenGroups, group_tokens
from modelswarms_fast.weights.experts import Experts, LoraModule
from modelswarms_fast.weights.mixing import ProductRow, ranks_of, row_form
from modelswarms_fast.weights.weight_loader import CopyTarget, WeightCopier

if TYPE_CHECKING:
    from modelswarms_fast.engines.vllm.mixture import OutputSlice


class TokenCoefficients:
    """The coefficients of a step's tokens [tokens, n]; on a CPU only of those that `groups` has, in its order."""

    def __init__(self, coefficients: torch.Tensor, groups: TokenGroups | None = None) -> None:
        self.coefficients, self.groups = coefficients, groups
        self._spread: dict[torch.Tensor, torch.Tensor] = {}

    def spread(self, experts: torch.Tensor) -> torch.Tensor:
        """[tokens, width]: of each token, the coefficients of these experts [width]; most layers ask for the same."""
        found = self._spread.get(experts)
        if found is None:
            found = self._spread[experts] = self.coefficients.index_select(1, experts)
        return found


class UpdateMixer:
    """All experts beside the model as one adapter, and a second one of that rank for a row that is no mixture."""

    def __init__(
        self,
        experts: Experts,
        adapted: Mapping[torch.nn.Module, Sequence[tuple[LoraModule, OutputSlice]]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`adapted`: of each module of the model, the layers that are fused in it."""
        self._count, form = len(experts.names), row_form(experts)
        modules, specs = {one.name: one for one in form.modules}, {one.name: one for one in form.layout.specs}
        whose: dict[tuple[int, ...], torch.Tensor] = {}
        targets: list[list[CopyTarget]] = [[], []]
        self.linears: list[tuple[torch.nn.Module, _TwoUpdates]] = []
        for live, parts in adapted.items():
            wide = [(modules[module.name], output) for module, output in parts]
            ranks = tuple(rank for module, _ in parts for rank in ranks_of(module, self._count))
            if ranks not in whose:
                number = torch.arange(self._count, device=device).repeat(len(parts))
                whose[ranks] = number.repeat_interleave(torch.tensor(ranks, device=device))
            nobody = whose.setdefault((sum(ranks),), torch.zeros_like(whose[ranks]))
            both = _TwoUpdates(*(_Update(wide, of, device, dtype) for of in (whose[ranks], nobody)))
            self.linears.append((live, both))
            for own, update in zip(targets, both, strict=True):
                start = 0
                for (module, output), b in zip(wide, update.b, strict=True):
                    a, (row, column) = update.a[start : start + module.rank], output.part
                    own += [CopyTarget(specs[module.a], a, start=(0, column))]
                    own += [CopyTarget(specs[module.b], b, start=(row, 0))]
                    start += module.rank
        WeightCopier(targets[0]).load(ProductRow(experts).mixed(torch.ones(self._count)))
        self.load_row = WeightCopier(targets[1]).load
        self._grouped = all(update.compiled is not None for _, both in self.linears for update in both)
        self._device = device

    def step(
        self, of_token: torch.Tensor, coefficients: torch.Tensor, row_slot: int | None
    ) -> tuple[TokenCoefficients | None, TokenCoefficients | None]:
        """For the experts and for the row that is no mixture, what a step needs; None where it has no such tokens.

        of_token [tokens]: slots, negative for the base model. coefficients [slots + 1, n + 1], the last those of the
        row.
        """
        own = of_token >= 0
        of_row = of_token == (-1 if row_slot is None else row_slot)
        found: list[TokenCoefficients | None] = []
        for mine, columns in ((own & ~of_row, slice(0, self._count)), (own & of_row, slice(self._count, None))):
            if not bool(mine.any()):
                found.append(None)
            elif self._grouped:
                groups = group_tokens(mine.long() - 1, lambda number: (0, [1.0]))
                found.append(TokenCoefficients(coefficients[of_token[mine] + 1, columns], groups))
            else:
                found.append(TokenCoefficients(coefficients[of_token + 1, columns].to(self._device)))
        return found[0], found[1]


class _Update:
    """An adapter of one module of the model; the layers that are fused in it are its parts.

    a [ranks of all parts, in], b of each part [out, rank]; of each row of A, `experts` says whose coefficient it has.
    """

    def __init__(
        self,
        parts: Sequence[tuple[LoraModule, OutputSlice]],
        experts: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        ranks = [module.rank for module, _ in parts]
        self.a = torch.zeros((sum(ranks), parts[0][1].inputs), **where)
        self.b = [torch.zeros((output.size, module.rank), **where) for module, output in parts]
        self._experts, self._sum = experts, parts[0][1].sum
        self._parts = [
            LowRankPart(a[None], b[None], output.start, module.scaling)
            for a, b, (module, output) in zip(self.a.split_with_sizes(ranks), self.b, parts, strict=True)
        ]
        self.compiled = LowRank.of(self._parts)

    def add(self, x: torch.Tensor, y: torch.Tensor, step: TokenCoefficients) -> None:
        """Add to y [tokens or more, out] what the tokens' mixtures make of x [tokens or more, in]."""
        if step.groups is not None:
            assert self.compiled is not None

            def between(low: torch.Tensor) -> torch.Tensor:
                return self._summed(low).mul_(step.spread(self._experts))

            self.compiled.add(x, y, step.groups, between)
            return
        tokens = len(step.coefficients)
        # In float32 where the model is in a half type: coefficients rounded to 8 bits would be other particles.
        low = self._summed((x[:tokens] @ self.a.t()).float()).mul_(step.spread(self._experts)).to(y.dtype)
        for part, own in zip(
            self._parts, low.split_with_sizes([len(part.a[0]) for part in self._parts], 1), strict=True
        ):
            y[:tokens, part.column : part.column + len(part.b[0])].addmm_(own, part.b[0].t(), alpha=part.scaling)

    def _summed(self, low: torch.Tensor) -> torch.Tensor:
        return low if self._sum is None else self._sum(low)


class _TwoUpdates(NamedTuple):
    experts: _Update
    row: _Update

    def add(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        step: tuple[TokenCoefficients | None, TokenCoefficients | None],
    ) -> None:
        """As those of its updates that the step has tokens of."""
        for update, mine in zip(self, step, strict=True):
            if mine is not None:
                update.add(x, y, mine)
