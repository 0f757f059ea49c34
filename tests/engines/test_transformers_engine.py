"""What the transformers engine refuses, rather than serve another model, and what its head is given."""

import pytest
from helpers_ensemble import llama
from helpers_models import edit_tensors, make_adapter, make_base

from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import read_experts


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    """transformers would make the tensor up at random; a tied head, which lies in the embeddings, lacks nothing."""
    TransformersEngine(llama(tmp_path / "tied", 1), None)
    folder = llama(tmp_path / "cut", 1)
    edit_tensors(folder, model__norm__weight=...)
    with pytest.raises(InputError, match=rf"^{folder} has no tensor model\.norm\.weight"):
        TransformersEngine(folder, None)


def test_a_head_that_would_be_written_over_the_embeddings_is_refused(tmp_path):
    """Two tensors of the experts with one place in the base, where the last would win."""
    base = llama(tmp_path / "base", 1)
    for seed in range(2):
        make_base(tmp_path / "experts" / f"{seed}", seed=seed, shape={"tie_word_embeddings": False})
    experts = read_experts(tmp_path / "experts")
    with pytest.raises(InputError, match="tied"):
        TransformersEngine(base, experts)


def test_the_head_is_not_copied_for_each_prompt(tmp_path):
    """Where it is frozen, as beside adapters, torch copies it for a slice that is not contiguous."""
    base = llama(tmp_path / "base", 1)
    for seed in range(2):
        make_adapter(base, tmp_path / "experts" / f"{seed}", seed=seed)
    experts = read_experts(tmp_path / "experts")
    engine = TransformersEngine(base, experts)
    given = []
    head = engine.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: given.append(inputs[0].is_contiguous()))
    engine.load(0, experts.rows[0])
    complete(engine, [Request(0, [1, 2, 3]), Request(0, [4, 5, 6])], 2)
    assert given
    assert all(given)
