"""LoRA on a CPU in one step of a vLLM engine: several slots and the base model, without an engine."""

import pytest
import torch

pytest.importorskip("vllm")

from modelswarms_fast.engines import vllm_cpu
from modelswarms_fast.engines.vllm_cpu import GroupedPunicaWrapper

SLOTS, RANK, INPUTS, OUTPUTS = 4, 8, 24, (16, 8)


@pytest.mark.parametrize("broken", ["none", "a", "b"])
@pytest.mark.parametrize("all_slots", [0, SLOTS * RANK])
def test_each_token_gets_its_own_slot(all_slots, broken, monkeypatch):
    """As groups and with all slots at once; the slot 3, which no token here uses, may hold NaN."""
    torch.manual_seed(0)
    slots = torch.tensor([2, 0, 0, -1, 2, 1, 1, -1, 2, 0])
    monkeypatch.setattr(vllm_cpu, "ALL_SLOTS", all_slots)
    monkeypatch.setattr(vllm_cpu.PunicaWrapperCPU, "__init__", lambda self: None)
    monkeypatch.setattr(vllm_cpu.PunicaWrapperCPU, "update_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(GroupedPunicaWrapper, "token_lora_indices", slots)
    wrapper = GroupedPunicaWrapper()
    for turn in range(2):  # nothing of the step before is left
        a = [torch.randn(SLOTS, 1, RANK, INPUTS) for _ in OUTPUTS]
        b = [torch.randn(SLOTS, 1, size, RANK) for size in OUTPUTS]
        for one in {"none": [], "a": a, "b": b}[broken]:
            one[3] = torch.nan
        slots.copy_(slots.roll(turn))
        x, y = torch.randn(len(slots), INPUTS), torch.randn(len(slots), sum(OUTPUTS))
        expected = y.clone()
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                expected[token] += 0.5 * torch.cat(
                    [q[slot, 0] @ (p[slot, 0] @ x[token]) for p, q in zip(a, b, strict=True)]
                )
        wrapper.update_metadata()
        wrapper.add_lora_linear(y, x, tuple(a), tuple(b), 0.5, OUTPUTS)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
