"""What is changed in vLLM's CPU build to be faster, without an engine."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from vllm.model_executor.layers.layernorm import RMSNorm

from modelswarms_fast.engines.vllm import cpu_patches

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("width", [576, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_norms_are_those_of_vllm_by_either_way(dtype: torch.dtype, width: int) -> None:
    """Widths that do not fill the vectors of vLLM's kernel go the long way, and what it would not round."""
    native = []

    def forward_native(x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        native.append(width)
        total = x.double() + (0.0 if residual is None else residual.double())
        normed = (total * torch.rsqrt((total**2).mean(-1, keepdim=True) + 1e-5) * weight.double()).to(dtype)
        return normed if residual is None else (normed, total.to(dtype))

    generator = torch.Generator().manual_seed(1)
    x, residual, weight = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((9, width), (9, width), width)
    )
    layer = SimpleNamespace(
        weight=SimpleNamespace(data=weight), variance_epsilon=1e-5, variance_size_override=None, has_weight=True
    )
    layer.forward_native = forward_native
    close = {"rtol": 2.5 * torch.finfo(dtype).eps, "atol": 2e-6}
    found, exact = cpu_patches.rms_norm(layer, x.clone()).double(), x.double() * weight.double()
    exact *= torch.rsqrt((x.double() ** 2).mean(-1, keepdim=True) + 1e-5)
    assert abs(((found - exact) / exact).mean()) < 0.05 * torch.finfo(dtype).eps + 1e-7, "rounded, not cut off"
    assert torch.allclose(found.to(dtype), forward_native(x, None), **close)
    for found, wanted in zip(
        cpu_patches.rms_norm(layer, x.clone(), residual.clone()), forward_native(x, residual), strict=True
    ):
        assert torch.allclose(found, wanted, **close)
    fast = width == 576 and (cpu_patches.ROUNDS or dtype != torch.bfloat16)
    assert len(native) == (2 if fast else 4)


def test_logits_are_converted_into_the_same_memory() -> None:
    """Same numbers, whatever was there before; float32 is left as it is."""
    seen: list[Tensor] = []
    forward = cpu_patches.FloatLogits(lambda logits, *args: seen.append(logits))
    first, second, third = (torch.randn(size, 50).bfloat16() for size in (4, 7, 2))
    for logits in (first, second, third):
        forward(logits, None)
        assert seen[-1].dtype == torch.float32
        assert torch.equal(seen[-1], logits.float())
    assert seen[2].data_ptr() == seen[1].data_ptr()
    wide = third.float()
    forward(wide, None)
    assert seen[-1] is wide


def of_vllm() -> list[object]:
    """What vLLM's own classes and modules have where they are changed."""
    return [vars(owner).get(name, "inherited") for owner, name, _ in cpu_patches._CHANGES]


def test_vllm_is_as_it_was_outside() -> None:
    """The import at the top of this file has changed nothing, and what is changed for a model is changed back."""
    before = of_vllm()
    assert RMSNorm.forward_cpu is not cpu_patches.rms_norm
    with cpu_patches.patched():
        assert RMSNorm.forward_cpu is cpu_patches.rms_norm
        assert of_vllm() != before
    assert of_vllm() == before
    with pytest.raises(KeyError), cpu_patches.patched():
        raise KeyError
    assert of_vllm() == before
