"""A user's own search.py and evaluate.py on our engine: what they say by themselves, and what cannot be served."""

import ast
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers_model_swarm import read
from helpers_models import edit_config, make_base
from helpers_run import ENGINE, ROOT, by_itself, forget, make_script, modules_of, serving, start
from helpers_search import write_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.compat import client as client_module
from modelswarms_fast.compat import lora_merge
from modelswarms_fast.compat.client import BrokerError
from modelswarms_fast.compat.run import __main__ as command
from modelswarms_fast.compat.run import places, served, tokens
from modelswarms_fast.compat.run.pools import Pools
from modelswarms_fast.config import EngineConfig

TEMPLATE = "{% for one in messages %}{{ one['content'] }}{% endfor %}{% if add_generation_prompt %}Z{% endif %}"
SETTINGS = EngineConfig(engine="transformers", dtype="float32")
WEIGHTS = "adapter_model.safetensors"
PROMPTS = ["bad", "dig it", "fun", "a", "fog and"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder, with a chat template."""
    folder = make_script(tmp_path_factory.mktemp("user"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def broker(place, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("socket") / "s", SETTINGS) as found:
        yield found


def edit_json(file, **fields):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({name: value for name, value in (content | fields).items() if value is not ...}))


def processes_of(folder):
    """Processes whose temporary files are in this folder."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                environment = (one / "environ").read_bytes()
                state = (one / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"TMPDIR={folder}\0".encode() in environment and state != "Z":
                found.append(one.name)
    return found


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_script_ends_as_it_does_by_itself(place, broker, tmp_path):
    """Its own evaluation type, in spawned workers; its prints and its exit status."""
    process = start(place, "search.py", "-n", "crash", "-e", "vowels", "-d", "quiz", TMPDIR=str(tmp_path))
    said, errors = process.communicate()
    assert process.returncode == 7, errors
    assert said == "ran search.py mine None\n"
    assert "lora_merge" in errors.splitlines()[0]
    run = place / "search" / "crash"
    experts = [place / "initial_experts" / name for name in ("ada", "bob")]
    merged = lora_merge([0.25, 0.75], experts, tmp_path / "merged", 0, 1)
    for name, tensor in load_file(run / "ada" / WEIGHTS).items():
        assert torch.equal(tensor, merged[name])
    with by_itself(place) as load:
        evaluate = load("evaluate").evaluate
        expected = [[evaluate(str(one), "vowels", "quiz", 0, save_dev_flag=True) for one in experts]]
        first = [read(one / "outputs_dev.json") for one in experts]
        expected.append([evaluate(str(run / one), "vowels", "quiz", 0) for one in ("ada", "bob")])
    assert read(run / "utilities.json") == expected
    assert len({str(one) for one in expected}) == 2
    assert read(run / "bob" / "outputs_dev.json") == first[1]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["merged"]
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_nothing_is_left_of_what_was_stopped(tmp_path):
    """Ctrl-C and a kill of the script, and a kill of its broker, which is one sentence."""
    (tmp_path / "evaluate.py").write_text("")
    client = "from modelswarms_fast.compat.client import Client; Client().ping()"
    (tmp_path / "wait.py").write_text(
        f"{client}; import time; print('here', flush=True)\nfor _ in range(6000): time.sleep(0.1); Client().ping()"
    )
    folders, running = [tmp_path / name for name in "abc"], []
    for folder in folders:
        folder.mkdir()
        running.append(start(tmp_path, *ENGINE, "wait.py", TMPDIR=str(folder), MODELSWARMS_SOCKET=""))
    for process, folder, number in zip(running, folders, (signal.SIGINT, signal.SIGKILL, 0), strict=True):
        assert process.stdout.readline() == "here\n"
        (broker,) = set(processes_of(folder)) - {str(process.pid)}
        if number:
            process.send_signal(number)
        else:
            os.kill(int(broker), signal.SIGKILL)
        said = process.communicate()[1]
        assert process.returncode == (-number or 2), said
    assert said.splitlines()[1:] == ["error: The broker has ended (status -9); start the script again."]
    for folder in folders:
        assert wait_for(lambda folder=folder: not processes_of(folder))
        assert wait_for(lambda folder=folder: not list(folder.iterdir()))


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        ("left", {}),
        ("right", {}),
        ("left", {"repetition_penalty": 3.0}),
        ("left", {"pad_token_id": 5, "eos_token_id": [0, 1]}),
        ("right", {"eos_token_id": list(range(20))}),
    ],
)
@pytest.mark.parametrize("kind", ["vowels", "chat"])
def test_texts_and_utilities_are_those_of_transformers(broker, place, side, settings, kind):
    edit_json(place / "base" / "tokenizer_config.json", padding_side=side)
    edit_json(place / "base" / "generation_config.json", eos_token_id=0, pad_token_id=..., repetition_penalty=...)
    edit_json(place / "base" / "generation_config.json", **settings)
    broker.fleet.release()  # which tokens end a text is read when an engine starts
    expert = str(place / "initial_experts" / "ada")
    with by_itself(place) as load:
        expected = load("evaluate").evaluate(expert, kind, "quiz", 0, save_dev_flag=True)
    texts = read(place / "initial_experts" / "ada" / "outputs_dev.json")
    with modules_of(place) as load:
        assert load("evaluate").evaluate(expert, kind, "quiz", 0, save_dev_flag=True) == expected
    assert read(place / "initial_experts" / "ada" / "outputs_dev.json") == texts
    assert len(set(texts)) > 3


@pytest.fixture
def model(broker, place):
    found = served.Served.from_pretrained(str(place / "base"), torch_dtype=torch.float32)
    found.load_adapter(str(place / "initial_experts" / "ada"))
    return found.to("cuda:0").eval()


@pytest.fixture
def tokenizer(place):
    edit_json(place / "base" / "tokenizer_config.json", padding_side="left")
    found = tokens.Tokenizers(AutoTokenizer).from_pretrained(place / "base")
    found.pad_token = found.eos_token
    return found


@pytest.fixture
def calls(broker, monkeypatch):
    """Jobs of each call of the broker."""
    found = []
    generate = broker.fleet.generate
    monkeypatch.setattr(
        broker.fleet, "generate", lambda jobs, *a, **k: (found.append(jobs), generate(jobs, *a, **k))[1]
    )
    return found


def answers(model, tokenizer, prompts, **more):
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to("cuda:0")
    output = model.generate(batch.input_ids.cuda(), max_new_tokens=4, **more)
    return tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


def first_letters(model, tokenizer, prompts, size=2):
    found = []
    while prompts:
        found += [text[0] for text in answers(model, tokenizer, prompts[:size])]  # an error, where a text is empty
        del prompts[:size]
    return found


def test_the_batches_of_a_function_are_answered_in_one_call(model, tokenizer, calls):
    expected = first_letters(model, tokenizer, list(PROMPTS))
    del calls[:]
    assert served.gathered(first_letters)(model, tokenizer, list(PROMPTS)) == expected
    assert [len(one) for one in calls] == [1, 1, 1]  # the first one alone: without its answers the function failed

    def batches(model, tokenizer, prompts):
        return [answers(model, tokenizer, prompts[first : first + 2]) for first in range(0, len(prompts), 2)]

    expected = batches(model, tokenizer, PROMPTS * 2)
    del calls[:]
    assert served.gathered(batches)(model, tokenizer, PROMPTS * 2) == expected
    assert len(calls) == 1
    assert len(calls[0]) == 5


def test_a_function_that_asks_until_it_has_an_answer_ends(model, tokenizer):
    def batch_generate(model, tokenizer, prompts):
        texts = [""]
        while not any(texts):
            texts = answers(model, tokenizer, prompts)
        return texts

    expected = batch_generate(model, tokenizer, PROMPTS)
    assert served.gathered(batch_generate)(model, tokenizer, prompts=PROMPTS) == expected


def test_drawn_answers_follow_torch(model, tokenizer):
    def draw(seed):
        torch.manual_seed(seed)
        return answers(model, tokenizer, ["fun"] * 8, do_sample=True, temperature=2.0)

    function = served.gathered(lambda model, seed: draw(seed))
    assert draw(1) == draw(1) == function(model, 1) != draw(2)
    assert len(set(draw(1))) > 1


@pytest.mark.parametrize("given", [True, False])
def test_a_mask_hides_padding(broker, place, given, tmp_path):
    """One that is given, and one that transformers guesses: the model's own padding is among the ids."""
    base = shutil.copytree(place / "base", tmp_path / "base")  # an engine keeps the ends that it was started with
    edit_json(base / "generation_config.json", pad_token_id=5, eos_token_id=0)
    ids = torch.tensor([[5, 5, 5, 20, 21], [5, 23, 5, 24, 25], [20, 21, 22, 23, 24]])
    masks = {"attention_mask": ids.ne(5).long()} if given else {}
    found = []
    for kind in (AutoModelForCausalLM, served.Served):
        model = kind.from_pretrained(str(base), dtype=torch.float32)
        model.load_adapter(str(place / "initial_experts" / "bob"))
        found.append(model.generate(ids, max_new_tokens=6, do_sample=False, **masks).tolist())
        if kind is served.Served:
            assert model.generate(ids[:1, 3:], max_new_tokens=6, do_sample=False)[0, 2:].tolist() == found[1][0][5:]
    assert found[0] == found[1]
    assert len({str(one[5:]) for one in found[0]}) == 3


def test_a_full_model_in_place_of_an_adapter_is_served(broker, place, tmp_path):
    full = make_base(tmp_path / "full", seed=4, shape={"max_position_embeddings": 400, "eos_token_id": 0})
    write_tokenizer(full)
    with by_itself(place) as load:
        expected = load("evaluate").evaluate(str(full), "vowels", "quiz", 0, save_dev_flag=True)
    texts = read(full / "outputs_dev.json")
    with modules_of(place) as load:
        assert load("evaluate").evaluate(str(full), "vowels", "quiz", 0, save_dev_flag=True) == expected
    assert read(full / "outputs_dev.json") == texts


def test_the_base_of_a_call_counts_and_not_the_one_that_the_adapter_names(model, tokenizer, place):
    expected = answers(model, tokenizer, PROMPTS)
    edit_config(place / "initial_experts" / "ada", base_model_name_or_path="/nowhere")
    assert answers(model, tokenizer, PROMPTS) == expected


def test_a_model_has_the_number_type_that_the_script_names(place, tmp_path):
    job = {"model": str(place / "initial_experts" / "bob"), "prompts": [[7, 8]], "max_tokens": 2}
    with serving(tmp_path / "s", EngineConfig(engine="transformers")) as broker:
        for dtype in ("float32", "bfloat16", None):
            served.client().generate([job | {"dtype": dtype}])
        assert [str(one.engine.dtype) for one in broker.fleet._engines.values()] == [
            "torch.float32",
            "torch.bfloat16",
            "torch.float32",
        ]
        with pytest.raises(BrokerError, match="dtype is 'float8'; choose one of auto, float32"):
            served.client().generate([job | {"dtype": "float8"}])
    with serving(tmp_path / "s", SETTINGS) as broker:
        served.client().generate([job | {"dtype": "bfloat16"}])
        assert [str(one.engine.dtype) for one in broker.fleet._engines.values()] == ["torch.float32"]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda model, ids: model(ids), "calls a model for its logits"),
        (lambda model, ids: model.forward(ids), "uses forward of a model"),
        (lambda model, ids: model.generate("text", max_new_tokens=1), "takes a tensor of token ids"),
        (lambda model, ids: model.generate(ids), "max_new_tokens=None; give a whole number"),
        (lambda model, ids: model.generate(ids, max_new_tokens=1, num_beams=2), "has num_beams"),
        (lambda model, ids: model.generate(ids, max_new_tokens=1, eos_token_id=63), "does not end with"),
        (lambda model, ids: model.generate(ids, max_new_tokens=1, bad_words_ids=[[1]]), "gives generate bad_words_ids"),
        (lambda model, ids: model.generate(ids, attention_mask=1 - ids // 9, max_new_tokens=1), "padding_side to left"),
        (lambda model, ids: model.load_adapter("base"), "base has no adapter_config.json"),
        (lambda model, ids: model.from_pretrained("base", trust_remote_code=True), "no model's own code is run"),
        (
            lambda model, ids: model.from_pretrained("base", quantization_config=1),
            "from_pretrained quantization_config",
        ),
        (lambda model, ids: model.from_pretrained("nowhere"), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(model, place, monkeypatch, ask, sentence):
    monkeypatch.chdir(place)
    with pytest.raises(BrokerError, match=sentence) as caught:
        ask(model, torch.tensor([[3, 4, 9]]))
    assert "\n" not in str(caught.value)
    assert not hasattr(model, "config")


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("merge", "gpu_id, directly", "device, directly", r"merge.py has lora_merge\(weights, .* device, .*gives? it"),
        ("merge", "lora_merge", "mine", "merge.py has no lora_merge"),
        ("evaluate", "AutoModelForCausalLM", "AutoModel", "evaluate.py has no AutoModelForCausalLM"),
    ],
)
def test_a_function_that_has_changed_is_not_replaced(place, tmp_path, name, old, new, sentence):
    (tmp_path / f"{name}.py").write_text((place / f"{name}.py").read_text().replace(old, new))
    with modules_of(tmp_path) as load, pytest.raises(BrokerError, match=sentence.replace("gives? it", "give it")):
        load(name)


def test_the_merge_of_a_script_is_ours(broker, place, tmp_path):
    experts = [str(place / "initial_experts" / name) for name in ("bob", "cyd")]
    with modules_of(place) as load:
        merge = load("merge").lora_merge
    found = merge([1, -0.5], experts, str(tmp_path / "fast"), 0, directly_load_safetensors=1)
    expected = lora_merge([1, -0.5], experts, tmp_path / "expected", 0, 1)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert merge([1, -0.5], experts, str(tmp_path / "slow"), 0) is None
    assert (tmp_path / "slow" / "adapter_config.json").is_file()
    with pytest.raises(BrokerError, match="nowhere"):
        merge([1], ["nowhere"], str(tmp_path / "none"), 0, 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.py"], "nothing.py is not there; give the search.py"),
        (["alone/search.py"], "alone has no evaluate.py"),
        (["--engine", "hf", "search.py"], "'hf'"),
        (["--engine_set", "slots", "search.py"], "--engine_set has 'slots'; give K=V"),
        (["--engine_set", "engines=0", "search.py"], "engines"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.delenv(client_module.PATH, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alone").mkdir()
    for name in ("search.py", "evaluate.py", "alone/search.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(sys, "argv", ["run", *words])
    with pytest.raises(SystemExit) as caught:
        command._command()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sentence in said


def test_a_socket_that_is_given_is_used(broker, place, monkeypatch, tmp_path):
    script = tmp_path / "search.py"
    (tmp_path / "evaluate.py").write_text("")
    script.write_text("import sys; raise SystemExit(sys.argv[1:])")
    before, pool = list(sys.path), command.multiprocessing.Pool
    try:
        with pytest.raises(SystemExit) as caught:
            command.main([str(script), "-n", "x", "--dtype", "y"])
        assert caught.value.code == ["-n", "x", "--dtype", "y"]
    finally:
        sys.path[:], command.multiprocessing.Pool = before, pool
        forget()
    with pytest.raises(BrokerError, match="MODELSWARMS_SOCKET is set; give --engine"):
        command.main(["--dtype", "float32", str(script)])
    monkeypatch.setenv(client_module.PATH, str(tmp_path / "gone"))
    with pytest.raises(BrokerError, match=r"No broker answers at .*gone"):
        command.main([str(script)])


def test_packages_that_are_missing_are_stood_in_for(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [places.SHIMS, str(tmp_path), *sys.path])
    (tmp_path / "old_one.py").write_text("A = 1")
    for name in ("nopackage", "nobar", "old_one"):
        monkeypatch.setitem(sys.modules, name, None)
    places.package("nobar", places.Silent)
    sys.modules["nobar"].init(name="x").config.update({})
    places.package("nopackage", inside=("models",))
    from nopackage.models import Model, load

    assert Model(a=1).Other
    with pytest.raises(ImportError, match=r"nopackage.models.load is called, and nopackage is not installed"):
        load()
    places.package("old_one", names=("A",))
    assert sys.modules["old_one"].A == 1
    places.package("old_one", names=("A", "B"))
    assert sys.modules["old_one"].B(1)
    (tmp_path / "broken.py").write_text("import nothing_like_it")
    with pytest.raises(ImportError, match="nothing_like_it"):
        places.package("broken")


def test_pools_keep_their_processes():
    import multiprocessing.pool

    pools = Pools(multiprocessing.pool.ThreadPool)
    with pools(processes=2) as first:
        inner = first._pool
        assert first.starmap(pow, [(2, 3)]) == [8]
    second = pools(2)
    assert second._pool is inner
    assert pools(2)._pool is not inner
    assert pools(3)._pool is not inner
    waiting = second.map_async(time.sleep, [0.01])
    second.close()
    second.join()
    assert waiting.get() == [None]
    assert pools(2)._pool is not inner
    assert isinstance(pools(4, None), multiprocessing.pool.ThreadPool)
    last = pools(5)
    last.close()
    (kept,) = last._free
    pools.end()
    with pytest.raises(ValueError, match="Pool not running"):
        kept.apply(int)


def test_what_runs_in_the_script_is_read_by_python_39():
    folder = ROOT / "modelswarms_fast" / "compat" / "run"
    for file in [*folder.glob("*.py"), *folder.glob("shims/*.py"), folder.parent / "client.py"]:
        if file.stem != "broker_process":
            tree = ast.parse(file.read_text(), feature_version=(3, 9))
            at_once = [one for one in tree.body if isinstance(one, ast.ImportFrom) and one.module]
            ours = {one.module for one in at_once if one.module.startswith("modelswarms_fast")}
            assert all("compat.run" in one or one.endswith("compat.client") for one in ours), file


def test_tokens_stay_where_they_are():
    ids = torch.tensor([[1, 2]]).as_subclass(tokens.Tokens)
    assert ids.to("cuda:1") is ids.to(torch.device("cuda")) is ids.cuda(1) is ids.to(device="cuda:0") is ids
    assert ids.to(torch.float32).dtype == ids.to("cuda:0", torch.float32).dtype == torch.float32
