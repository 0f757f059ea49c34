"""What the transformers engine refuses, rather than serve another model, and what its head is given."""

from dataclasses import replace

import pytest
from helpers_ensemble import llama
from helpers_families import FAMILIES, answers, make_full, make_model
from helpers_models import edit_tensors, make_adapter, make_base
from helpers_search import write_tokenizer

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


def test_the_models_own_penalty_has_no_effect(tmp_path):
    """Nor any other setting of its generation_config.json but the end of a sequence: vLLM is not given them."""
    shape = {"initializer_range": 0.4, "tie_word_embeddings": False}
    folder, prompt = make_base(tmp_path / "base", shape=shape), Request(None, [5, 6, 7])
    write_tokenizer(folder)
    plain = complete(TransformersEngine(folder, None), [prompt], 12)[0]
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "repetition_penalty": 5.0, "min_length": 9}')
    assert complete(TransformersEngine(folder, None), [prompt], 12)[0].ids == plain.ids
    end = plain.ids[4]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {end}}}')
    assert complete(TransformersEngine(folder, None), [prompt], 12)[0].ids == plain.ids[: plain.ids.index(end) + 1]


@pytest.mark.parametrize(("name", "tensor"), [("Mixtral", "experts.3."), ("Qwen3-MoE", "experts.3."),
                                              ("Gemma 4", "layer_scalar")])  # fmt: skip
def test_whole_checkpoints_are_served(tmp_path, name, tensor):
    """Each expert's matrices are found in the stack that transformers makes of them, and buffers beside parameters."""
    family = FAMILIES[name]
    base = make_model(family, tmp_path / "base")
    for seed in range(2):
        make_full(family, base, tmp_path / "experts" / f"{seed}", seed)
    experts = read_experts(tmp_path / "experts")
    assert any(tensor in spec.name for spec in experts.layout.specs)
    engine = TransformersEngine(tmp_path / "base", experts)
    prompt = [5, 6, 7, 8, 9, 10]
    for slot, folder in ((None, "base"), (0, "experts/1"), (None, "base")):
        if slot is None:
            engine.restore()
        else:
            engine.load(0, experts.rows[1])
        right = answers(family, tmp_path / folder, None, prompt)
        said = engine.log_probs(Request(slot, prompt))
        assert [said[token] for token in range(64)] == pytest.approx(right, abs=1e-5)


def test_whole_checkpoints_that_lack_an_expert_of_a_layer_are_refused(tmp_path):
    family = FAMILIES["Mixtral"]
    base = make_model(family, tmp_path / "base")
    for seed in range(2):
        make_full(family, base, tmp_path / "experts" / f"{seed}", seed)
        edit_tensors(tmp_path / "experts" / f"{seed}", model__layers__1__block_sparse_moe__experts__3__w2__weight=...)
    experts = read_experts(tmp_path / "experts")
    with pytest.raises(InputError, match=r"no tensor model\.layers\.1\.block_sparse_moe\.experts\.3\.w2\.weight"):
        TransformersEngine(tmp_path / "base", experts)


def test_attention_is_capped_as_the_config_says(tmp_path):
    """In Gemma 2, where the attention that transformers takes by itself is not."""
    family = FAMILIES["Gemma 2"]
    family = replace(family, settings=family.settings | {"attn_logit_softcapping": 0.5})
    make_model(family, tmp_path)
    right = answers(family, tmp_path, None, [5, 6, 7, 8, 9, 10])
    said = TransformersEngine(tmp_path, None).log_probs(Request(None, [5, 6, 7, 8, 9, 10]))
    assert [said[token] for token in range(64)] == pytest.approx(right, abs=1e-5)


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
