"""Full checkpoints and base models with damaged files: read, or refused in one sentence that names the file."""

import json
import os
import shutil

import pytest
from fuzzing import JSON, TEXTS, damaged_bytes, fuzz, run_case
from helpers_models import make_base
from helpers_search import write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.start import dtype_of, max_model_len_of
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import read_experts

INDEX = "model.safetensors.index.json"
TEXT_FILES = ("config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two checkpoints in several files with an index, each with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number in range(2):
        make_base(folder / str(number), seed=number, max_shard_size="20KB")
        write_tokenizer(folder / str(number))
    assert (folder / "0" / INDEX).exists()
    return folder


def fresh(pool):
    """The second checkpoint, as it was."""
    shutil.rmtree(pool / "odd", ignore_errors=True)
    return shutil.copytree(pool / "1", pool / "odd")


def use(folder):
    """What is done with a base model before an engine starts, and by the exact engine."""
    base = resolve_base(str(folder))
    dtype_of(base, EngineConfig(engine="transformers")), max_model_len_of(base, EngineConfig(engine="transformers"))
    engine = TransformersEngine(base, None)
    engine.tokenizer.encode("abc")


@fuzz(60)
@given(st.data())
def test_fuzz_fields_of_base_models(pool, data):
    odd = fresh(pool)
    name = data.draw(st.sampled_from([name for name in TEXT_FILES if (odd / name).exists()]))
    content = json.loads((odd / name).read_text())
    field = data.draw(st.sampled_from(sorted(content)) | TEXTS)
    content[field] = data.draw(JSON)
    (odd / name).write_text(json.dumps(content))
    run_case("fields of base models", lambda: use(odd))


@fuzz(60)
@given(st.data())
def test_fuzz_fields_of_checkpoints(pool, data):
    odd = fresh(pool)
    name = data.draw(st.sampled_from(["config.json", INDEX]))
    content = json.loads((odd / name).read_text())
    if name == INDEX and data.draw(st.booleans()):
        content["weight_map"] = dict(content["weight_map"])
        content["weight_map"][data.draw(st.sampled_from(sorted(content["weight_map"])) | TEXTS)] = data.draw(JSON)
    else:
        content[data.draw(st.sampled_from(sorted(content)) | TEXTS)] = data.draw(JSON)
    (odd / name).write_text(json.dumps(content))
    run_case("fields of checkpoints", lambda: read_experts([pool / "0", odd], base=pool / "0"))


@fuzz(80)
@given(st.data())
def test_fuzz_bytes_of_checkpoints(pool, data):
    odd = fresh(pool)
    name = data.draw(st.sampled_from(sorted(path.name for path in odd.iterdir())))
    (odd / name).write_bytes(data.draw(damaged_bytes((odd / name).read_bytes())))
    run_case("bytes of checkpoints", lambda: (resolve_base(str(odd)), read_experts([pool / "0", odd], base=pool / "0")))


@fuzz(30)
@given(st.data())
def test_fuzz_kinds_of_files_of_checkpoints(pool, data):
    odd = fresh(pool)
    name = data.draw(st.sampled_from(sorted(path.name for path in odd.iterdir())))
    (odd / name).unlink()
    kind = data.draw(st.sampled_from(["pipe", "folder", "device", "loop", "gone"]))
    makers = {
        "pipe": lambda: os.mkfifo(odd / name),
        "folder": lambda: (odd / name).mkdir(),
        "device": lambda: (odd / name).symlink_to("/dev/zero"),
        "loop": lambda: (odd / name).symlink_to(name),
        "gone": lambda: None,
    }
    makers[kind]()
    run_case("kinds of files of checkpoints", lambda: use(odd))


@fuzz(60)
@given(TEXTS)
def test_fuzz_names_of_models(tmp_path_factory, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(tmp_path_factory.getbasetemp())
        run_case("names of models", lambda: resolve_base(name))
        run_case("names of models", lambda: read_experts([name, name]))
