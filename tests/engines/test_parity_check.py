"""The parity check: wrong loads are found, each kind of them, and right ones pass; tiny models with real adapters."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers_models import edit_tensors, make_adapter, make_base
from helpers_search import make_tiny, write_tokenizer

from modelswarms_fast.engines.agreement import Rounding, agreement
from modelswarms_fast.engines.parity_check import FIXED, PROMPTS, ParityCheck
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError, ParityError
from modelswarms_fast.weights.experts import read_experts

SUPPORT = Path(__file__).parents[1] / "support"
LAYERS = 6
TASK = [[5 + (7 * start + 3 * place) % 50 for place in range(6)] for start in range(12)]
"""Token ids of prompts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of several layers and three experts of it."""
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base", shape={"num_hidden_layers": LAYERS})
    write_tokenizer(base)
    for seed, name in enumerate(("ada", "bob", "cyd")):
        make_adapter(base, folder / "experts" / name, seed=seed, scale=0.3)
    return folder


@pytest.fixture(scope="module")
def experts(folder):
    return read_experts(folder / "experts", base=folder / "base")


@pytest.fixture(scope="module")
def oracle(folder, experts):
    return TransformersEngine(folder / "base", experts, dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def plain(request, folder, experts):
    return TransformersEngine(folder / "base", experts, dtype=request.param, device=torch.device("cpu"))


class Wrong:
    """An engine that loads another row than it is given, and whose answers may be old."""

    def __init__(self, engine, change=lambda row: row, stale=False):
        self._engine, self._change, self._stale = engine, change, stale
        self.dtype, self.tokenizer = engine.dtype, engine.tokenizer
        self._old = {}

    def load(self, slot, row):
        self._engine.load(slot, self._change(row))

    def restore(self):
        self._engine.restore()

    def log_probs(self, request, top):
        found = self._engine.log_probs(request, top)
        return self._old.setdefault(tuple(request.prompt), found) if self._stale else found


@pytest.fixture
def check(plain, oracle, experts):
    """Loads a row into an engine that errs, and checks it; `before`: a row that it is given first."""

    def run(row, change=lambda row: row, *, before=None, stale=False):
        engine = Wrong(plain, change, stale=stale and before is None)
        plain.restore()
        oracle.restore()
        found = ParityCheck(engine, oracle, TASK)
        found.begin(experts)
        if before is not None:
            engine.load(0, before)
            engine._stale = stale
            assert found.check(0, before) is not None
        engine.load(0, row)
        return found.check(0, row)

    return run


def edited(experts, row, **parts):
    """A copy of the row whose A or B, of modules whose name has a text in it, is what a function makes of it."""
    row = row.clone()
    views = experts.layout.views(row)
    for module in experts.modules:
        if parts["of"] in module.name:
            for half in {"a", "b"} & parts.keys():
                name = getattr(module, half)
                views[name].copy_(parts[half](name, views[name]))
    return row


def test_right_loads_pass(check, experts):
    for row in [*experts.rows, experts.rows.mean(dim=0), 1.5 * experts.rows[0] - 0.5 * experts.rows[1]]:
        found = check(row)
        assert found is not None
        assert found.coefficient == pytest.approx(1, abs=0.05)
        assert found.correlation > 0.99


WRONG = {
    "another expert": lambda experts, row: experts.rows[1],
    "another mixture": lambda experts, row: row.lerp(experts.rows[1], 0.5),
    "nothing": lambda experts, row: torch.zeros_like(row),
    "no module of a kind": lambda experts, row: edited(experts, row, of="down_proj", b=lambda name, b: 0 * b),
    "no scaling": lambda experts, row: edited(experts, row, of="", b=lambda name, b: b / 2),
    "A of another expert": lambda experts, row: edited(
        experts, row, of="", a=lambda name, a: experts.layout.views(experts.rows[1])[name]
    ),
    "one layer is missing": lambda experts, row: edited(experts, row, of="layers.3.", b=lambda name, b: 0 * b),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_loads_are_found(kind, check, experts):
    with pytest.raises(ParityError) as error:
        check(experts.rows[0], lambda row: WRONG[kind](experts, row))
    assert "the expert ada, in slot 0" in str(error.value)


def test_answers_of_the_load_before_are_found(check, experts):
    """As of a prefix cache that does not see that weights have changed."""
    with pytest.raises(ParityError, match=r"the expert bob, in slot 0\).*coefficient.*correlation"):
        check(experts.rows[1], before=experts.rows[0], stale=True)


def test_a_load_without_effect_has_a_sentence_of_its_own(check, experts):
    with pytest.raises(ParityError, match=r"no effect.*model\.layers\.0\.mlp\.down_proj to model\.layers"):
        check(experts.rows[0], stale=True)


def test_a_change_too_small_to_tell_is_one_warning(check, plain, oracle, experts, caplog):
    """And no error; but a load that changes more than it should is one."""
    small = {torch.float32: 1e-4, torch.bfloat16: 1e-2}[plain.dtype] * experts.rows[0]
    assert check(small) is None
    (warning,) = [record.getMessage() for record in caplog.records if "parity" in record.name]
    assert "cannot tell whether the engine serves the weights it was given (a particle, in slot 0)" in warning
    with pytest.raises(ParityError):
        check(small, lambda row: experts.rows[0])
    caplog.clear()
    plain.restore()
    found = ParityCheck(plain, oracle, TASK)
    oracle.restore()
    found.begin(experts)
    for number in (0.5, 1.0):
        for engine in (plain, oracle):
            engine.load(0, number * small)
        assert found.check(0, number * small) is None
    assert len([record for record in caplog.records if "parity" in record.name]) == 1


def test_a_base_that_is_not_restored_is_found(plain, oracle, experts):
    """At the start, and at the end of a search."""
    engine = Wrong(plain)
    found = ParityCheck(engine, oracle, TASK)
    plain.load(0, experts.rows[0])
    plain._loaded = False  # as if it had been restored
    oracle.restore()
    with pytest.raises(ParityError, match=r"does not serve the base model: what it shows after.*coefficient"):
        found.begin(experts)
    plain.restore()
    found.begin(experts)
    for row in (experts.rows[0], 0.3 * experts.rows[0]):
        plain.load(0, row)
        plain._loaded = False
        with pytest.raises(ParityError, match=r"does not serve the base model: what it shows of their change"):
            found.check(None, None)
    plain.restore()
    found.check(None, None)


def test_a_base_that_is_computed_a_little_otherwise_is_found_in_float32(oracle):
    """As if one of the engines left something out of the model: far less than another dtype rounds."""
    oracle.restore()
    engine = Wrong(oracle)
    engine.log_probs = lambda request, top: {
        token: value * (1.01 if token % 2 else 1) for token, value in oracle.log_probs(request, top).items()
    }
    with pytest.raises(ParityError, match="does not serve the base model"):
        ParityCheck(engine, oracle, TASK).check(None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_is_named(value, folder, experts, tmp_path):
    base = make_base(tmp_path / "base", shape={"num_hidden_layers": LAYERS})
    write_tokenizer(base)
    edit_tensors(base, model__norm__weight=torch.full((32,), value))
    spoilt = read_experts(folder / "experts", base=base)
    engine = TransformersEngine(base, spoilt, dtype="float32", device=torch.device("cpu"))
    with pytest.raises(InputError, match=f"The base model {base} answers with NaN or infinity, in transformers"):
        ParityCheck(engine, engine, TASK).begin(spoilt)


def test_a_load_that_answers_with_nan_is_found_unless_it_should(check, oracle, experts):
    spoilt = edited(experts, experts.rows[0], of="layers.0.", b=lambda name, b: b * float("nan"))
    with pytest.raises(ParityError, match="the expert ada"):
        check(experts.rows[0], lambda row: spoilt)
    assert check(spoilt) is None


def test_an_adapter_that_is_zero_is_named_and_no_error(check, experts, plain, oracle, caplog):
    rows = experts.rows.clone()
    for module in experts.modules:
        experts.layout.views(rows[1])[module.b].zero_()
    found = ParityCheck(plain, oracle, TASK)
    for engine in (plain, oracle):
        engine.restore()
    found.begin(SimpleNamespace(**{**vars(experts), "rows": rows}))
    for engine in (plain, oracle):
        engine.load(0, rows[1])
    assert found.check(0, rows[1]) is None
    assert [record.getMessage() for record in caplog.records if "parity" in record.name] == [
        "The expert bob changes nothing: its adapter is zero."
    ]


def test_the_tasks_first_prompts_are_asked_and_fixed_ones_where_they_are_few(oracle):
    many = [[1, number] for number in range(40) for _ in range(2)]
    assert ParityCheck(oracle, oracle, many).prompts == [[1, number] for number in range(PROMPTS)]
    few = ParityCheck(oracle, oracle, [[1, 2], [1, 2]]).prompts
    assert few[0] == [1, 2]
    assert (
        few[1:] == ParityCheck(oracle, oracle).prompts == [list(oracle.tokenizer(text)["input_ids"]) for text in FIXED]
    )
    long = [[number] * 3000 for number in range(5)]
    assert len(ParityCheck(oracle, oracle, long).prompts) == 1 + len(FIXED)


def test_the_two_numbers():
    base = [{1: -1.0, 2: -2.0, 3: -3.0}]
    expected = [{3: -1.0, 2: -2.0, 1: -3.0}]
    half = [{2: -2.0, 3: -2.0, 1: -2.0}]
    assert agreement(expected, expected, (base, base))[:2] == pytest.approx((1, 1))
    assert agreement(half, expected, (base, base))[:2] == pytest.approx((0.5, 1))
    assert agreement(base, expected)[:2] == pytest.approx((-1, -1))
    shifted = [{token: value - 5 for token, value in expected[0].items()}]
    assert agreement(shifted, expected, (base, base))[:2] == pytest.approx((1, 1)), "logits up to a constant"
    assert not agreement(base, expected, (base, base)).within(Rounding(0.1, 0.01).limits(1.0))
    assert not agreement(base, base, (base, base)).within(Rounding(0.1, 0.01).base), "NaN"
    far = [{3: -1.0, 2: -2.0}]
    assert agreement(far, expected, (base, base)).coefficient == pytest.approx(0.75), "the last of the list"


@pytest.mark.parametrize("engines", [1, 2])
def test_the_oracle_is_closed_after_the_last_load_that_is_checked(engines, oracle, experts):
    closed = []
    watched = SimpleNamespace(
        load=oracle.load, restore=oracle.restore, log_probs=oracle.log_probs, close=lambda: closed.append(1)
    )
    served = Wrong(oracle)
    served.log_probs = lambda request, top: oracle.log_probs(request._replace(slot=0 if oracle._loaded else None), top)
    oracle.restore()
    found = ParityCheck(served, watched, TASK, engines, every=False)
    found.begin(experts)
    for slot in range(engines):
        assert not closed
        found.after_load(slot, experts.rows[slot])
    assert closed


WRONG_ENGINES = {
    "merged": (
        "from modelswarms_fast.engines.vllm.live_weights import LiveWeights as Engine",
        ["--serve", "merged"],
    ),
    "pool": (
        "from modelswarms_fast.engines.pool.pool import EnginePool as Engine",
        ["--serve", "slots", "--engines", "2", "--slots", "1"],
    ),
}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG_ENGINES)
def test_a_failed_check_is_one_sentence_and_exit_status_3(kind, tmp_path):
    """As a shell sees it, of an engine that leaves half of each load out."""
    pytest.importorskip("vllm")
    found, (imports, options) = make_tiny(tmp_path, hidden_size=128), WRONG_ENGINES[kind]
    code = f"""
{imports}
load = Engine.load
Engine.load = lambda self, slot, row: load(self, slot, row / 2)
from modelswarms_fast.cli.main import main
main()
"""
    command = [sys.executable, "-c", code, "search", found["experts"], "--base", found["base"], *options]
    command += ["--task", found["task"], "--data", found["data"], "--out", tmp_path / "run", "--dtype", "float32"]
    result = subprocess.run(command, cwd=SUPPORT, capture_output=True, text=True, check=False)
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "The engine does not serve the weights it was given (the expert ada, in slot 0): what it shows" in sentence
