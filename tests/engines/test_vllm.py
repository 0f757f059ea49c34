"""The real thing: vLLM with SmolLM2-135M-Instruct and the example experts, checked against transformers.

float32 throughout, so that tolerances are tight. The engines are built once; tests leave them on the base model.
"""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modelswarms_fast.config import EngineConfig, Sampling
from modelswarms_fast.engines.parity_check import FIXED, ParityCheck
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import EngineError, InputError, ParityError
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.adapters import LoraModule
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import export, read_experts
from modelswarms_fast.weights.layout import Layout, TensorSpec
from modelswarms_fast.weights.row_name import row_name
from modelswarms_fast.weights.weight_loader import CopyTarget, WeightCopier

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm import low_rank
from modelswarms_fast.engines.vllm import mixture as mixture_module
from modelswarms_fast.engines.vllm.cpu_patches import GroupedPunicaWrapper
from modelswarms_fast.engines.vllm.lora_slots import RowSlots, SlotPart, row_slots, stacked_slots

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples" / "experts"
SLOTS = 3
STEP = 320  # requests in a step: more than vLLM's own number


@pytest.fixture(scope="module")
def base():
    return resolve_base("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def experts():
    return read_experts(EXAMPLES, dtype=torch.float32)


@pytest.fixture(scope="module")
def oracle(base, experts):
    return TransformersEngine(base, experts, dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def engines(base, experts):
    """One engine a way of serving, made when it is first asked for."""
    made = {}

    def get(serve):
        if serve not in made:
            state = "mixture" if serve == "mixture" else "weights"
            config = EngineConfig(
                serve=serve, state=state, slots=SLOTS, dtype="float32", max_model_len=512, max_num_seqs=STEP
            )
            made[serve] = start_engine(base, experts, config)
        return made[serve]

    return get


@pytest.fixture(params=["merged", "slots", "mixture"])
def engine(request, engines):
    engine = engines(request.param)
    yield engine
    engine.restore()


@pytest.fixture(scope="module")
def probe(oracle):
    return list(oracle.tokenizer(FIXED[0])["input_ids"])


@pytest.fixture(scope="module")
def prompts(oracle):
    """Longer than a block of the prefix cache, so that blocks are cached and hit."""
    questions = [
        "What is 4 plus 5?",
        "Which is larger, 17 or 71?",
        "Sort the letters c, a and b.",
        "Reverse abc.",
    ]
    context = "The following are questions of a small quiz. Answer each of them as briefly as you possibly can. " * 3
    return [list(oracle.tokenizer(f"{context}\nQuestion: {question}\nAnswer:")["input_ids"]) for question in questions]


def texts(engine, prompts, slot=0):
    return [completion.text for completion in complete(engine, [Request(slot, prompt) for prompt in prompts], 10)]


def oracle_texts(oracle, prompts, row):
    """What it says is kept: it is slow, and asked for the same in many tests."""
    said, key = vars(oracle).setdefault("said", {}), (row_name(row), str(prompts))
    if key not in said:
        oracle.load(0, row)
        said[key] = texts(oracle, prompts)
    return said[key]


def test_as_many_particles_in_one_step_as_it_may_have_requests(engines, oracle, experts, monkeypatch):
    """Each is served as it is alone."""
    engine = engines("mixture")
    prompt = list(oracle.tokenizer("3 km in m =")["input_ids"])
    mixtures = torch.randn((STEP, len(experts.names)), generator=torch.Generator().manual_seed(1))
    steps, group = [], mixture_module.group_tokens

    def counted(of_token, blocks):
        steps.append(len(of_token.unique()))
        return group(of_token, blocks)

    for slot, mixture in enumerate(mixtures):
        engine.load_mixture(slot, mixture)
    with monkeypatch.context() as patch:
        patch.setattr(mixture_module, "group_tokens", counted)
        together = complete(engine, [Request(slot, prompt) for slot in range(STEP)], 4)
    assert max(steps) == STEP
    assert len({completion.text for completion in together}) > 8
    for slot in range(0, STEP, 40):
        engine.load_mixture(0, mixtures[slot])
        assert complete(engine, [Request(0, prompt)], 4) == [together[slot]]
    engine.restore()


def test_answers_are_drawn_each_by_its_own_seed(engine, oracle, experts, probe, prompts):
    """From softmax(logits / temperature), whatever shares a batch: vLLM has a generator a request."""
    engine.load(0, experts.rows[1])
    hot = Sampling(1.5, 0.95)
    requests = [Request(0, prompt, None, hot._replace(seed=seed)) for seed in range(6) for prompt in prompts[:2]]
    together = complete(engine, [*requests, Request(0, prompts[0])], 8)
    assert together == complete(engine, [Request(0, prompts[0]), *requests[::-1]], 8)[::-1]
    assert complete(engine, requests[5:6], 8) == together[5:6], "alone"
    assert together[-1] == complete(engine, [Request(0, prompts[0])], 8)[0]
    assert len({one.text for one in together}) > 3
    oracle.load(0, experts.rows[1])
    only = complete(engine, [Request(0, prompt, None, Sampling(1.5, top_k=1)) for prompt in prompts], 8)
    assert only == complete(engine, [Request(0, prompt) for prompt in prompts], 8)
    again = [Request(0, prompt, None, Sampling(0.0, repetition_penalty=1.3)) for prompt in prompts[:4]]
    penalised = [list(one.ids) for one in complete(engine, again, 8)]
    assert penalised == [list(one.ids) for one in complete(oracle, again, 8)]
    assert penalised != [list(one.ids) for one in only[:4]]
    weights = {token: math.exp(value / 1.5) for token, value in oracle.log_probs(Request(0, probe)).items()}
    whole, count = sum(weights.values()), 400
    seeds = [Request(0, probe, None, Sampling(1.5, 1.0, seed)) for seed in range(count)]
    drawn = complete(engine, seeds, 1)
    assert drawn[280:300] == complete(engine, seeds[280:300], 1), "one of 280 to 300 was read in two parts"
    found = Counter(one.text for one in drawn)
    for token in sorted(weights, key=weights.__getitem__)[-5:]:
        share = weights[token] / whole
        often = found[oracle.tokenizer.decode([token], skip_special_tokens=True)] / count
        assert abs(often - share) < 5 * (share / count) ** 0.5 + 1 / count


def test_the_parity_check_proves_each_load(engine, oracle, probe, prompts, experts):
    """Every load, to every slot, serves the weights given; the base is the base before and after."""
    oracle.restore()
    parity_check = ParityCheck(engine, oracle, prompts)
    parity_check.check(None, None)
    before = engine.log_probs(Request(None, probe))
    mixed = experts.rows.mean(dim=0)
    for turn, row in enumerate([*experts.rows[:4], mixed, 1.5 * experts.rows[0] - 0.5 * experts.rows[1]]):
        slot = 0 if engine.serve == "mixture" else turn % engine.slots
        engine.load(slot, row)
        found = parity_check.check(slot, row)
        assert found is not None
        assert found[:2] == pytest.approx((1, 1), abs=1e-3)
    engine.restore()
    parity_check.check(None, None)
    assert engine.log_probs(Request(None, probe)) == before, "bit for bit"


def test_the_parity_check_sees_a_wrong_load(engine, oracle, prompts, experts):
    oracle.restore()
    parity_check = ParityCheck(engine, oracle, prompts)
    parity_check.begin(experts)
    engine.load(0, experts.rows[1])
    with pytest.raises(ParityError, match=r"the weights it was given \(the expert addition, in slot 0\)"):
        parity_check.check(0, experts.rows[0])


def test_the_parity_check_sees_a_stale_prefix_cache(engine, oracle, prompts, experts):
    """Answers whose prompt was read by the load before: only its last tokens are new."""
    oracle.restore()
    parity_check = ParityCheck(engine, oracle, prompts)
    parity_check.begin(experts)
    engine.load(0, experts.rows[0])
    assert parity_check.check(0, experts.rows[0]) is not None
    engine._version -= 1  # as if the load were the same as before
    engine.load(0, experts.rows[1])
    with pytest.raises(ParityError, match="the expert category, in slot 0"):
        parity_check.check(0, experts.rows[1])


def test_the_parity_check_sees_a_base_that_is_not_restored(engines, oracle, probe, prompts, experts, monkeypatch):
    engine = engines("merged")
    engine.load(0, experts.rows[0])
    oracle.restore()
    parity_check = ParityCheck(engine, oracle, prompts)
    monkeypatch.setattr(engine, "_versions", {})  # as if it had been restored
    with pytest.raises(ParityError, match="does not serve the base model"):
        parity_check.check(None, None)
    monkeypatch.undo()
    engine.restore()
    parity_check.check(None, None)


def test_generates_what_transformers_generates(engine, oracle, prompts, experts):
    for index in range(3):
        engine.load(0, experts.rows[index])
        assert texts(engine, prompts) == oracle_texts(oracle, prompts, experts.rows[index])


def test_slots_are_served_in_one_batch_beside_the_base(engines, oracle, prompts, experts):
    """All slots full and the base in the same batch: each request gets its own weights."""
    engine = engines("slots")
    for slot in range(SLOTS):
        engine.load(slot, experts.rows[slot])
    order = [slot for _ in prompts for slot in (0, None, 1, 2)]
    mixed = complete(engine, [Request(slot, prompt) for prompt in prompts for slot in (0, None, 1, 2)], 10)
    for slot in range(SLOTS):
        own = [completion.text for completion, of in zip(mixed, order, strict=True) if of == slot]
        assert own == oracle_texts(oracle, prompts, experts.rows[slot])
    own = [completion.text for completion, of in zip(mixed, order, strict=True) if of is None]
    oracle.restore()
    assert own == texts(oracle, prompts, slot=None)
    engine.restore()


@pytest.mark.parametrize(
    ("fill", "room"),
    [(row_slots, False), (row_slots, True), (stacked_slots, False)],
)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("tokens", [slice(1, 4), torch.tensor([0, 3])], ids=["neighbours", "apart"])
def test_slots_of_every_kind_add_what_their_rows_say(fill, room, compiled, tokens, monkeypatch):
    """A fused layer whose second part is not adapted, ranks below that of the slots, three slots, two scalings.

    Slots that are rows show those of the room where they lie, and copies of others; here, of both kinds in one step.
    """
    if not compiled:
        monkeypatch.setattr(low_rank, "_C", None)
    inputs, sizes, rank = 24, (40, 8, 16), 8
    modules = [LoraModule("q", "q.a", "q.b", 4, 2.0), LoraModule("v", "v.a", "v.b", 3, 0.5)]
    shapes = {"q.a": (4, inputs), "q.b": (40, 4), "v.a": (3, inputs), "v.b": (16, 3)}
    layout = Layout.of({name: torch.empty(shape) for name, shape in shapes.items()}, torch.float32)
    wrapper = GroupedPunicaWrapper.__new__(GroupedPunicaWrapper)
    wrapper.begin()
    layer = SimpleNamespace(
        lora_a_stacked=tuple(torch.zeros(3, 1, rank, inputs) for _ in sizes),
        lora_b_stacked=tuple(torch.zeros(3, 1, size, rank) for size in sizes),
        punica_wrapper=wrapper,
    )
    rows = empty_rows(4, layout.size, torch.float32).zero_()
    experts = SimpleNamespace(layout=layout, rows=rows, room=rows)
    mode = fill(3, [SlotPart(modules[0], layer, 0, 0, 0), SlotPart(modules[1], layer, 2, 0, 0)], experts)
    for row in rows:
        for view in layout.views(row).values():
            view.copy_(torch.randn(view.shape))
    served = [3, 0, 2]
    for slot, row in enumerate(served):
        mode.load(slot, rows[row] if room and slot else rows[row].clone())
    if fill is row_slots:
        assert wrapper.in_room == ({1: 0, 2: 2} if room else {})
    slots = torch.tensor([0, -1, -1, 2, 0, -1])
    slots[tokens] = 1
    wrapper.group(slots)
    x, y = torch.randn(6, inputs), torch.randn(6, sum(sizes))
    expected = y.clone()
    for token, slot in enumerate(slots.tolist()):
        views = layout.views(rows[served[slot]])
        for module, start in zip(modules if slot >= 0 else (), (0, 48), strict=False):
            a, b = views[module.a], views[module.b]
            expected[token, start : start + len(b)] += 3.0 * module.scaling * b @ (a @ x[token])
    wrapper.add_lora_linear(y, x, layer.lora_a_stacked, layer.lora_b_stacked, 3.0, sizes)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_slot_forgets_the_row_that_it_showed():
    """A copy, a mixture or another row takes its place; what is not quite a row of the room is copied or refused."""
    layout = Layout.of({"t": torch.empty(40)}, torch.float32)
    rows = empty_rows(3, layout.size, torch.float32).zero_()
    rows += torch.arange(3.0)[:, None]
    own, in_room, changes = torch.zeros(6, layout.size), {}, []
    plans = [WeightCopier([CopyTarget(TensorSpec("row", 0, (1, layout.size)), one[None])]) for one in own]
    slots = RowSlots(plans, rows, rows, in_room, lambda: changes.append(len(changes)))
    slots.load(5, rows[2])
    slots.load(5, rows[1])
    assert in_room == {5: 1}
    assert not own.any()
    slots.load(5, rows[2].double())
    assert in_room == {}
    assert (own[5] == 2).all()
    slots.load(5, rows[1])
    slots.load_mixture(5, torch.tensor([0.0, 1.0, 1.0]))
    assert in_room == {}
    assert (own[5] == 3).all()
    slots.load(5, rows[0])
    between = rows.as_strided((layout.size,), (1,), 1)
    slots.load(5, between)
    assert in_room == {}, "not a row, but the end of one and the beginning of the next"
    assert torch.equal(own[5], between)
    assert not own[:5].any()
    slots.load(5, rows[0])
    for wrong in (rows[1, 1:], rows[0].as_strided((layout.size,), (2,)), rows[0, :-1]):
        with pytest.raises(ValueError, match="row"):
            slots.load(5, wrong)
        assert in_room == {5: 0}
    assert len(changes) == 8, "a step of the same slots must not be laid out as the one before"


def test_mixtures_are_served_in_one_batch_beside_the_base(engines, oracle, prompts, experts):
    """Many particles, the base and a row that is no mixture, their requests interleaved: each gets its own weights."""
    engine = engines("mixture")
    coefficients = torch.randn((6, len(experts.names)), generator=torch.Generator().manual_seed(1))
    coefficients += (1 - coefficients.sum(1, keepdim=True)) / len(experts.names)
    coefficients = 0.3 * coefficients + 0.7 * torch.eye(len(experts.names))[:6]
    for slot, mixture in enumerate(coefficients):
        engine.load_mixture(slot, mixture.double())
    row = 0.8 * experts.rows[3] - 0.5 * experts.rows[5]
    engine.load(1023, row)
    order = [None, *range(len(coefficients)), 1023]
    mixed = complete(engine, [Request(slot, prompt) for prompt in prompts for slot in order], 10)
    answers = {
        slot: [c.text for c, of in zip(mixed, order * len(prompts), strict=True) if of == slot] for slot in order
    }
    for slot, mixture in enumerate(coefficients):
        oracle.load_mixture(0, mixture)
        assert answers[slot] == texts(oracle, prompts), slot
    assert answers[1023] == oracle_texts(oracle, prompts, row)
    oracle.restore()
    assert answers[None] == texts(oracle, prompts, slot=None)
    assert len({tuple(answer) for answer in answers.values()}) > 4, "particles that all say the same prove nothing"
    with pytest.raises(RuntimeError, match="only one"):
        engine.load(0, row)
    engine.restore()


def test_a_thousand_mixtures_share_batches(engines, oracle, experts):
    """Far more particles than a batch holds requests; each next token's particle is the one that was asked for."""
    engine = engines("mixture")
    count, corners = 1000, len(experts.names)
    weights = torch.linspace(0, 1, count)
    prompt = list(oracle.tokenizer("Reverse the letters: abc ->")["input_ids"])
    expected = {}
    for corner in range(corners):
        oracle.load(0, experts.rows[corner])
        expected[corner] = complete(oracle, [Request(0, prompt)], 4)[0].text
    assert len(set(expected.values())) > 2
    for slot in range(count):
        engine.load_mixture(slot, torch.eye(corners)[(7 * slot) % corners])
    answers = complete(engine, [Request(slot, prompt) for slot in range(count)], 4)
    assert [answer.text for answer in answers] == [expected[(7 * slot) % corners] for slot in range(count)]
    blend = weights[:, None] * torch.eye(corners)[0] + (1 - weights[:, None]) * torch.eye(corners)[1]
    for slot in (0, 400, 999):
        engine.load_mixture(slot, blend[slot])
        oracle.load_mixture(0, blend[slot])
        served, right = engine.log_probs(Request(slot, prompt), top=10), oracle.log_probs(Request(0, prompt))
        assert max(abs(value - right[token]) for token, value in served.items()) < 2e-3
    engine.restore()


def test_the_prefix_cache_never_serves_a_stale_particle(engine, oracle, prompts, experts):
    """Without the version in the cache key it does: this is the failure that the version prevents."""
    first, second = experts.rows[0], experts.rows[1]
    expected = {index: oracle_texts(oracle, prompts, experts.rows[index]) for index in (0, 1)}
    assert expected[0] != expected[1]
    engine.load(0, first)
    version = engine._versions[0]
    assert texts(engine, prompts) == expected[0]

    engine.load(0, second)
    remedied = engine._versions[0]
    engine._versions[0] = version  # the remedy taken away: blocks of the first particle are found again
    assert texts(engine, prompts) != expected[1]
    engine._versions[0] = remedied
    assert texts(engine, prompts) == expected[1]
    engine.load(0, first)
    assert texts(engine, prompts) == expected[0]


def test_what_is_served_does_not_depend_on_what_was_before(engine, prompts, experts):
    row = experts.rows[2].clone()
    engine.load(0, row)
    row.zero_()  # a load copies
    fresh = texts(engine, prompts)
    for row in experts.rows[3:6]:
        engine.load(0, row)
        texts(engine, prompts)
    engine.load(0, experts.rows[2])
    assert texts(engine, prompts) == fresh


# Before the tests with engines of their own: with an engine end the process groups that all of a process share.
def test_a_particle_that_overflowed_says_so_and_leaves_the_others_alone(engine, prompts, experts):
    requests = [*(Request(0, prompt) for prompt in prompts), Request(0, prompts[0], prompts[1][-3:])]
    engine.load(0, experts.rows[0])
    good = complete(engine, requests, 10)
    engine.load(0, torch.full_like(experts.rows[0], math.nan))
    others = []
    if engine.serve == "slots":
        engine.load(1, experts.rows[0])
        others = [Request(1, prompt) for prompt in prompts]
    assert any(map(math.isnan, engine.log_probs(Request(0, prompts[0])).values()))
    bad = complete(engine, requests + others, 10)
    assert [one.finite and math.isfinite(one.log_prob) for one in bad] == [False] * 5 + [True] * len(others)
    assert [one.text for one in bad[5:]] == [one.text for one in good[: len(others)]]
    engine.load(0, experts.rows[0])
    assert complete(engine, requests, 10) == good
    assert all(one.finite for one in good)


def test_continuations_are_as_likely_as_transformers_says(engine, oracle, prompts, experts):
    """In one batch with prompts, and in the same slots; on the base as well. One is what the particle itself says."""
    row = experts.rows[0]
    oracle.load(0, row)
    said = texts(oracle, prompts[:1])[0]
    words = [said, " Paris and Rome", " 9", " the end of it"]
    tokens = [list(oracle.tokenizer(word)["input_ids"]) for word in words]
    pairs = list(zip(prompts, tokens, strict=True))
    engine.load(0, row)
    requests = [Request(0, prompt) for prompt in prompts] + [Request(0, *pair) for pair in pairs]
    oracle.load(0, row)
    expected, found = complete(oracle, requests, 10), complete(engine, requests, 10)
    assert [one.text for one in found] == [one.text for one in expected]
    assert [(one.tokens, one.greedy) for one in found[4:]] == [(one.tokens, one.greedy) for one in expected[4:]]
    assert [one.log_prob for one in found] == pytest.approx([one.log_prob for one in expected], abs=5e-3)
    assert found[4].greedy
    assert not engine._continuations

    engine.submit(77, requests[-1], 1)
    engine.drop([77])
    assert not engine._continuations
    engine.restore()
    oracle.restore()
    pairs = [Request(None, *pair) for pair in pairs]
    expected, found = complete(oracle, pairs, 1), complete(engine, pairs, 1)
    assert [one.log_prob for one in found] == pytest.approx([one.log_prob for one in expected], abs=5e-3)


def test_an_engine_that_fails_says_so_once(engine, prompts, experts, monkeypatch):
    engine.load(0, experts.rows[0])
    engine.submit(0, Request(0, prompts[0]), 4)
    monkeypatch.setattr(engine.llm.llm_engine, "step", lambda: 1 / 0)
    with pytest.raises(EngineError, match=r"vLLM engine failed.*ZeroDivisionError.*history\.jsonl"):
        engine.step()
    monkeypatch.undo()
    while not engine.step():
        pass


@pytest.fixture(scope="module")
def plain(base, experts):
    """vLLM without particles, LoRA on; kept, since with an engine end the process groups that all of them share."""
    from vllm import LLM

    return LLM(
        model=str(base), dtype="float32", max_model_len=512, enforce_eager=True, seed=0, kv_cache_memory_bytes=1 << 28,
        block_size=32, disable_log_stats=True, enable_lora=True, max_loras=1, max_lora_rank=8,
        lora_target_modules=sorted({module.name.rpartition(".")[2] for module in experts.modules}),
    )  # fmt: skip


def test_the_exported_folder_is_served_by_vllm_itself(engines, plain, base, experts, prompts, tmp_path):
    """The winner's folder, loaded by another engine's own LoRA loader, answers as our slot does."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    engine = engines("slots")
    row = 0.6 * experts.rows[0] + 0.7 * experts.rows[1] - 0.3 * experts.rows[2]
    folder = tmp_path / "winner"
    export(folder, row, experts, base=base, provenance={"utility": "none"})
    engine.load(1, row)
    ours = texts(engine, prompts, slot=1)
    reread = read_experts([folder], dtype=torch.float32, minimum=1).rows[0]
    assert torch.equal(reread, row)
    engine.load(2, reread)
    assert texts(engine, prompts, slot=2) == ours
    engine.restore()
    outputs = plain.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=10),
        lora_request=LoRARequest("winner", 1, str(folder)),
        use_tqdm=False,
    )
    assert [output.outputs[0].text for output in outputs] == ours


def test_full_weights_are_served_in_place(base, probe, prompts):
    """A row of every weight, the tied head among them, is written into the live model and taken out again."""
    weights = read_experts([base], minimum=1, dtype=torch.float32)
    changed = weights.rows[0].clone()
    for name, view in weights.layout.views(changed).items():
        if "layers.3." in name or "embed_tokens" in name:
            view.mul_(1.05)
    engine = start_engine(base, weights, EngineConfig(dtype="float32", max_model_len=512))
    oracle = TransformersEngine(base, weights, dtype="float32", device=torch.device("cpu"))
    parity_check = ParityCheck(engine, oracle, prompts)
    parity_check.check(None, None)
    before = engine.log_probs(Request(None, probe))
    for row in (weights.rows[0], changed):
        engine.load(0, row)
        parity_check.check(0, row)
        assert texts(engine, prompts) == oracle_texts(oracle, prompts, row)
    assert engine.log_probs(Request(0, probe)) != before
    engine.restore()
    assert engine.log_probs(Request(None, probe)) == before


@pytest.fixture(scope="module")
def checkpoints(base, experts, tmp_path_factory):
    """Three whole checkpoints: the base model with one of the example adapters merged into each."""
    plain = read_experts([base], minimum=1)
    folders = []
    for index in range(3):
        row = plain.rows[0].clone()
        weights, halves = plain.layout.views(row), experts.layout.views(experts.rows[index])
        for module in experts.modules:
            weights[f"{module.name}.weight"] += module.scaling * halves[module.b] @ halves[module.a]
        folders.append(tmp_path_factory.mktemp("checkpoints") / experts.names[index])
        export(folders[-1], row, plain, base=base, provenance={"utility": "none"})
    return folders


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_a_search_over_whole_checkpoints(checkpoints, base, state, tmp_path):
    """Every load proved, the winner exported as a checkpoint; a new engine on it alone scores what the search did."""
    task = {"task": "exact_match", "data": EXAMPLES.parent / "data" / "skills_mix.json"}
    settings = {"limit_dev": 6, "limit_test": 4, "max_model_len": 256, "iterations": 1, "state": state}
    summary = search(
        checkpoints, base=str(base), out=tmp_path / "run", serve="auto", parity_check="all", seed=2, **task, **settings
    )
    assert summary["serve"] == "merged", "the only way there is"
    assert summary["auto_timings"] == {}
    winner = tmp_path / "run" / "global_best"
    assert (winner / "model.safetensors").exists()
    assert not (winner / "adapter_config.json").exists()
    alone = evaluate(str(winner), base=str(winner), limit_test=4, max_model_len=256, **task)
    assert alone["score"] == summary["end"]["test"]


def test_auto_serves_in_every_way_and_takes_the_fastest(base, oracle, prompts, experts, monkeypatch):
    """One engine, LoRA on: what it serves in each way is what the oracle says, and the choice follows the clock."""
    config = EngineConfig(serve="auto", state="mixture", slots=SLOTS, dtype="float32", max_model_len=512)
    engine = start_engine(base, experts, config)
    engine.autotune(prompts, 2)
    assert set(engine.auto_timings) == {"merged", "slots", "mixture"}
    assert engine.auto_timings[engine.serve] >= 0.95 * max(engine.auto_timings.values()) > 0
    plain = texts(engine, prompts, slot=None)
    oracle.restore()
    assert plain == texts(oracle, prompts, slot=None)
    mixture = torch.linspace(-0.2, 0.5, len(experts.names))
    mixture /= mixture.sum()
    oracle.load_mixture(0, mixture)
    expected = texts(oracle, prompts)
    assert expected != plain
    for fastest, slots in (("slots", SLOTS), ("merged", 1), ("mixture", 1024), ("slots", SLOTS)):
        monkeypatch.setattr(engine, "_seconds", lambda way, *_, fastest=fastest: 1.0 if way == fastest else 1.06)
        engine.autotune(prompts, 2)
        assert (engine.serve, engine.slots) == (fastest, slots)
        engine.load_mixture(0, mixture)
        assert texts(engine, prompts) == expected
        engine.restore()
        assert texts(engine, prompts, slot=None) == plain
    for fast, taken in ((("merged", "slots"), "slots"), (("merged", "mixture"), "mixture")):
        monkeypatch.setattr(engine, "_seconds", lambda way, *_, fast=fast: {fast[0]: 1.0, fast[1]: 1.04}.get(way, 2.0))
        engine.autotune(prompts, 2)
        assert engine.serve == taken, "about as fast, and more particles at once"


def test_misuse_is_refused(engine, experts, prompts):
    with pytest.raises(RuntimeError, match="is empty"):
        engine.submit(0, Request(0, prompts[0]), 1)
    with pytest.raises(IndexError):
        engine.load(engine.slots, experts.rows[0])
    engine.load(0, experts.rows[0])
    with pytest.raises(IndexError):
        engine.submit(0, Request(-1, prompts[0]), 1)
    if engine.serve == "merged":
        with pytest.raises(RuntimeError, match="restore"):
            engine.submit(0, Request(None, prompts[0]), 1)


def test_ways_of_serving_that_contradict_the_rest_are_refused(base):
    for serve in ("slots", "mixture"):
        with pytest.raises(InputError, match="no LoRA experts"):
            start_engine(base, None, EngineConfig(serve=serve, state="mixture"))
    with pytest.raises(InputError, match="use state='mixture'"):
        EngineConfig(serve="mixture", state="weights")
    for serve in ("mixture", "auto"):
        with pytest.raises(InputError, match=f"serve is '{serve}' but the transformers engine"):
            EngineConfig(serve=serve, state="mixture", engine="transformers")


@pytest.mark.parametrize("serve", ["merged", "mixture"])
def test_experts_of_another_base_are_refused(engines, experts, serve):
    """The worker names the module that the base model does not have."""
    rpc = engines(serve).llm.collective_rpc
    modules = tuple(
        type(m)(m.name.replace("layers.0", "layers.99"), m.a, m.b, m.rank, m.scaling) for m in experts.modules
    )
    other = replace(experts, modules=modules)
    with pytest.raises(InputError, match=r"layers\.99"):
        rpc("swarm_attach", args=(serve, other))


@pytest.mark.parametrize(("serve", "state"), [("merged", "weights"), ("slots", "mixture"), ("mixture", "mixture")])
def test_a_search_whose_every_load_is_proved(serve, state, tmp_path):
    """The demo's search, shortened: a parity check after each load, the winner read back from the disk."""
    summary = search(
        EXAMPLES,
        base="smollm2-135m-instruct",
        task="exact_match",
        data=EXAMPLES.parent / "data" / "skills_mix.json",
        out=tmp_path / "run",
        serve=serve,
        state=state,
        parity_check="all",
        iterations=1,
        limit_dev=6,
        limit_test=4,
        max_model_len=256,
    )
    slow = torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert summary["dtype"] == ("float32" if slow else "bfloat16"), "the checkpoint's, unless torch is slow in it"
    assert summary["evaluations"] == 16
    assert len(read_history(tmp_path / "run" / "history.jsonl")) == 2
    assert summary["end"]["dev"] >= summary["start"]["dev"]
    assert (tmp_path / "run" / "global_best" / "tokenizer.json").exists()
