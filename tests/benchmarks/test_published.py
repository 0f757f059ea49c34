"""The published code's update and iteration, on stand-ins for a clone of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.operators import bench_update
from benchmarks.published import model_swarm, model_swarm_clone, published
from modelswarms_fast.ops import swarm_update_
from modelswarms_fast.weights.layout import Layout

# A clone of the published code, as far as the adapter asks for it.
MERGE = """
from pathlib import Path
from safetensors.torch import load_file, save_file

def read(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")

def lora_merge(weights, lora_name_list, output_name, gpu_id, directly_load_safetensors=0):
    assert directly_load_safetensors == 1
    parts = [read(folder) for folder in lora_name_list]
    merged = {name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) for name in parts[0]}
    Path(output_name).mkdir(exist_ok=True)
    save_file(merged, Path(output_name) / "adapter_model.safetensors")
"""


def make_swarm(particles=3, size=200, dtype=torch.float32):
    torch.manual_seed(4)
    return bench_update.make_swarm(particles, size, dtype)


def test_the_published_update_is_ours(tmp_path):
    layout = Layout.of({"a.weight": torch.empty(5, 8), "b.weight": torch.empty(3)})
    theirs, ours = (make_swarm(3, layout.size) for _ in range(2))
    clone, files = tmp_path / "clone", tmp_path / "files"
    clone.mkdir()
    files.mkdir()
    (clone / "merge.py").write_text(MERGE)
    swarm = published.Published(published.lora_merge_of(clone), files, layout, theirs)
    for _ in range(2):
        swarm.update()
        swarm_update_(*ours.all)
    for particle in range(3):
        position, velocity = swarm.rows(particle)
        for found, expected in ((position, ours.position), (velocity, ours.velocity)):
            for name, view in layout.views(found).items():
                torch.testing.assert_close(view, layout.views(expected[particle])[name], rtol=1e-5, atol=1e-5)
    assert load_file(files / "best" / published.WEIGHTS)["a.weight"].shape == (5, 8)


def test_a_clone_without_merge(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no merge\.py"):
        published.lora_merge_of(tmp_path)


def test_a_clone_without_search(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no search\.py"):
        model_swarm.compare(tmp_path, tmp_path, "choices", tmp_path / "both")


def test_factors_are_drawn_in_the_order_of_moves():
    uniform = model_swarm_clone.uniform_of(3)
    drawn = [[[uniform(0, 1) for _ in range(4)] for _ in range(3)] for _ in range(2)]
    assert drawn == [[model_swarm_clone.factors(k, i) for i in range(3)] for k in (1, 2)]


ITERATION = {
    "search.py": """
import os
import vertexai
from trl import Trainer, tuned

LIMIT = tuned(3)


@tuned(steps=3)
def unused():
    pass


def lora_merge(weights, names, output, gpu, fast):
    os.makedirs(output, exist_ok=True)


def particle_update(index, gpu, name, *settings):
    assert sorted(os.listdir(f"search/{name}/particle_{index}")) == ["now", "personal_best", "velocity"]
    assert sorted(os.listdir(f"search/{name}")) == ["global_best", "global_worst", *(f"particle_{i}" for i in range(3))]
    if os.path.exists("log"):
        vertexai.log({})
    open(f"search/{name}/particle_{index}/now/moved", "w").close()
""",
    "evaluate.py": """
import json
import os
import time

import torch


class Model:
    dtype = torch.float16


def evaluate(path, task, dataset, gpu, base):
    global model
    model = Model()
    assert os.path.exists(path + "/moved") and task == "exact_match" and base == "the base"
    assert torch.zeros(2).to(f"cuda:{gpu}").device.type == "cpu"
    time.sleep(1000)
    return len(json.load(open(f"data/eval/{dataset}.json"))["dev"])
""",
}


def clone_with_an_iteration(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name, text in ITERATION.items():
        (clone / name).write_text(text)
    experts = [tmp_path / f"expert-{index}" for index in range(3)]
    for expert in experts:
        expert.mkdir()
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"dev": [1, 2, 3, 4], "test": []}))
    return clone, experts, data


def test_an_iteration_of_the_published_code_is_scaled_and_does_not_sleep(tmp_path):
    clone, experts, data = clone_with_an_iteration(tmp_path)
    found = published.published_iteration(clone, experts, Path("the base"), data, measured=[2])
    assert (found["measured_particles"], found["sleep"], found["utilities"]) == (1, 1000, [4])
    assert found["dtype"] == "float16"
    assert found["seconds"] == pytest.approx(3 * (found["update"] + found["evaluate"]))
    assert sorted(path.name for path in clone.iterdir()) == ["evaluate.py", "search.py"]


def test_a_missing_package_that_is_used_after_all_is_an_error(tmp_path):
    clone, experts, data = clone_with_an_iteration(tmp_path)
    (clone / "log").touch()
    with pytest.raises(RuntimeError, match=r"used vertexai\.log, which is not installed"):
        published.published_iteration(clone, experts, Path("the base"), data, measured=[0])
