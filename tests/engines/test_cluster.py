"""What a cluster must have, as sentences: no Ray is started here."""

import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import helpers_search
import pytest
import torch

from modelswarms_fast.cli import main
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.pool import cluster
from modelswarms_fast.engines.pool.cluster import bundle_of, of_bytes, read_on_node, start_of, to_bytes
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.experiment import choose_state
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny


@pytest.mark.parametrize(
    ("nodes", "engines", "ranks", "bundle"),
    [
        ([{"CPU": 64, "GPU": 8}], 8, 1, {"GPU": 1}),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 8}, {"GPU": 4}], 3, 4, {"GPU": 4}),
        ([{"CPU": 4}, {"CPU": 4}], 2, 1, {"CPU": 4}),
        ([{"CPU": 2}] * 3, 2, 1, {"CPU": 2}),
        ([{"CPU": 3}, {"CPU": 4}], 3, 1, {"CPU": 2}),
        ([{}, {"CPU": 1}, {"CPU": 1}], 2, 1, {"CPU": 1}),
    ],
)
def test_each_engine_gets_devices_of_one_node(nodes, engines, ranks, bundle):
    assert bundle_of(nodes, engines, ranks) == bundle


@pytest.mark.parametrize(
    ("nodes", "engines", "ranks", "sentence"),
    [
        ([{"GPU": 8}, {"GPU": 3}], 3, 4, "nodes of the cluster have 8, 3 GPUs, room for 2: 4 GPUs are missing"),
        ([{"CPU": 64, "GPU": 2}], 4, 1, "have 2 GPUs, room for 2: 2 GPUs are missing"),
        ([{"CPU": 1}, {"CPU": 1}], 3, 1, "the cluster has 2 cores and no GPU: 1 are missing"),
    ],
)
def test_what_is_missing_is_said(nodes, engines, ranks, sentence):
    with pytest.raises(InputError, match=sentence):
        bundle_of(nodes, engines, ranks)


def test_a_cluster_needs_mixtures():
    with pytest.raises(InputError, match=r"^cluster is 'auto' but state='weights' keeps its rows on one machine; use"):
        EngineConfig(cluster="auto", state="weights")
    assert choose_state(EngineConfig(cluster="auto"), "particle") == ("mixture", "cluster is 'auto'")


def failing(tiny, tmp_path, monkeypatch, capsys, *options):
    """The sentence with which a search on a cluster ends."""
    monkeypatch.chdir(Path(__file__).parent)
    words = ["search", tiny["experts"], "--base", tiny["base"], "--task", tiny["task"], "--data", tiny["data"]]
    words += ["--out", tmp_path / "run", "--engine", "transformers", *options]
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return sentence


def test_without_ray_there_is_one_sentence(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    sentence = failing(tiny, tmp_path, monkeypatch, capsys, "--cluster", "local")
    assert "Ray cannot be imported" in sentence
    assert "install modelswarms-fast[ray]" in sentence


@pytest.mark.parametrize("where", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001", "127.0.0.1:99999999"])
def test_no_ray_at_an_address_is_one_sentence(tiny, tmp_path, monkeypatch, capsys, where):
    pytest.importorskip("ray")
    sentence = failing(tiny, tmp_path, monkeypatch, capsys, "--cluster", where)
    assert f"cluster is '{where}'" in sentence
    assert "HOST:PORT of" in sentence


def test_another_server_at_an_address_is_not_waited_for(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "CONNECT_LIMIT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(InputError, match="no Ray answers there"):
        cluster.join(f"127.0.0.1:{server.getsockname()[1]}")


def test_other_versions_on_a_node_are_named(monkeypatch):
    mine = {"Python": "3.11.7", "Ray": "2.60.0", "modelswarms-fast": "0.1.0"}
    monkeypatch.setattr(cluster, "versions", lambda: mine)
    cluster.check_versions("10.0.0.2", dict(mine))
    with pytest.raises(InputError, match=r"^The node 10\.0\.0\.2 has Ray 2\.59\.0, but this machine has 2\.60\.0;"):
        cluster.check_versions("10.0.0.2", mine | {"Ray": "2.59.0"})


@pytest.fixture
def start(tiny, tmp_path):
    """What a node is told, of files in a folder of its own."""
    base = shutil.copytree(tiny["base"], tmp_path / "base")
    folder = shutil.copytree(tiny["experts"], tmp_path / "experts")
    return start_of(base, read_experts(folder, base=base), EngineConfig(engine="transformers", cluster="auto"))


def test_a_node_reads_the_same_rows(start, tiny):
    wrong, rows = read_on_node(start, "10.0.0.2")
    assert wrong is None
    layout = start.experts.layout
    assert torch.equal(of_bytes(rows, layout.size, layout.dtype), read_experts(tiny["experts"]).rows)


def test_a_node_without_the_experts_gets_them(start, tmp_path):
    shutil.rmtree(tmp_path / "experts")
    assert read_on_node(start, "10.0.0.2") == (None, None)


def test_other_files_on_a_node_are_named(start, tmp_path):
    other = tmp_path / "experts" / "bob" / "adapter_model.safetensors"
    shutil.copy(tmp_path / "experts" / "ada" / "adapter_model.safetensors", other)
    wrong, _ = read_on_node(start, "10.0.0.2")
    assert wrong == f"The expert {other.parent} on the node 10.0.0.2 is not this machine's; copy it there anew."
    (tmp_path / "base" / "config.json").write_text("{}")
    wrong, _ = read_on_node(start, "10.0.0.2")
    assert wrong.startswith(f"The base model {tmp_path / 'base'} on the node 10.0.0.2 is not this machine's")
    wrong, _ = read_on_node(replace(start, base=tmp_path / "gone"), "10.0.0.2")
    assert wrong.startswith(f"The node 10.0.0.2 cannot read the base model {tmp_path / 'gone'} (")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_as_bytes(dtype):
    rows = empty_rows(3, 100, dtype).copy_(torch.arange(300).view(3, 100))
    for some in (rows, rows[1:], rows[2:], rows.contiguous()):
        assert torch.equal(of_bytes(to_bytes(some), 100, dtype), some)
