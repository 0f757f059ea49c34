"""Engines as actors of a Ray cluster: real nodes on this machine, with the exact engine on a tiny model."""

import logging
import pickle

import helpers_cluster
import helpers_search
import pytest
from helpers_search import told

pytest.importorskip("ray")

from modelswarms_fast.engines.pool import pool, ray_actor
from modelswarms_fast.engines.pool.pool import EnginePool
from modelswarms_fast.engines.pool.ray_actor import RESTARTS, RayMember
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs.search import search

pytestmark = pytest.mark.slow

tiny = helpers_search.tiny
cluster = helpers_cluster.cluster


def test_a_cluster_finds_what_one_engine_finds(cluster, tiny, tmp_path, monkeypatch):
    """To the bit, with few bytes: coefficients travel, and weights do not."""
    sent = []
    flush = RayMember.flush

    def counted(self):
        sent.append(list(self.calls))
        flush(self)

    monkeypatch.setattr(RayMember, "flush", counted)
    logs = {f"engine-{number}.log" for number in (1, 2)}
    alone = search(**tiny, out=tmp_path / "1", particles=5, state="mixture")
    together = search(**tiny, out=tmp_path / "2", particles=5, engines=2, cluster=cluster.address)
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert alone["end"] == together["end"]
    assert (tmp_path / "1" / "global_best" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "2" / "global_best" / "adapter_model.safetensors"
    ).read_bytes()
    assert {file.name for file in (tmp_path / "2").glob("engines/*")} <= logs
    calls = [call for some in sent for call in some]
    rows = [call for call in calls if call[0] == "load"]
    assert len(rows) <= 4, "only the test of two models sends rows, by reference"
    others = [call for call in calls if call[0] not in ("prompt", "load")]
    assert {call[0] for call in others} >= {"load_mixture", "submit"}
    assert len(pickle.dumps(others)) < 100_000


def test_an_actor_and_a_node_that_die_change_nothing(cluster, tiny, tmp_path, monkeypatch, caplog):
    """An actor is killed in an iteration; in a later one the node of an actor is, and another node joins."""
    import ray

    monkeypatch.setattr(pool, "LOOK", 0.1)
    monkeypatch.setattr(ray_actor, "BEAT", 0.5)
    monkeypatch.setattr(ray_actor, "BEAT_LIMIT", 10.0)
    real, steps, killed = EnginePool._receive, 0, []

    def receive(self):
        nonlocal steps
        steps += bool(self._sharing.busy)
        if steps == 2 and not killed:
            killed.append(self._workers[min(self._sharing.busy)])
            ray.kill(killed[0].actor)
        while len(killed) == 1 and not (killed[0].restarts_left < RESTARTS and killed[0].ready):
            real(self)  # until it is back
        one = next((one for one in self._workers if one.node_id == cluster.other.node_id), None)
        if len(killed) == 1 and one is not None and one.number in self._sharing.busy:
            killed.append(one)
            cluster.remove_node(cluster.other, allow_graceful=False)
            cluster.other = cluster.add_node(wait=False, **helpers_cluster.NODE)
        real(self)

    monkeypatch.setattr(EnginePool, "_receive", receive)
    alone = search(**tiny | {"iterations": 8}, out=tmp_path / "1", particles=5, state="mixture")
    with caplog.at_level(logging.WARNING):
        together = search(
            **tiny | {"iterations": 8}, out=tmp_path / "2", particles=5, engines=2, cluster=cluster.address
        )
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert alone["end"] == together["end"]
    assert len(killed) == 2
    lost = [line.get("engines_lost", []) for line in read_history(tmp_path / "2" / "history.jsonl")]
    assert sum(map(len, lost)) == 2
    assert all("it is started anew" in sentence for some in lost for sentence in some)
