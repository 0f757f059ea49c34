"""Engines as actors of a Ray cluster: real nodes on this machine, with the exact engine on a tiny model."""

import pickle

import helpers_cluster
import helpers_search
import pytest
from helpers_search import told

pytest.importorskip("ray")

from modelswarms_fast.engines.pool.ray_actor import RayMember
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
    alone = search(**tiny, out=tmp_path / "1", particles=5, state="mixture")
    together = search(**tiny, out=tmp_path / "2", particles=5, engines=2, cluster=cluster.address)
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert alone["end"] == together["end"]
    assert (tmp_path / "1" / "global_best" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "2" / "global_best" / "adapter_model.safetensors"
    ).read_bytes()
    calls = [call for some in sent for call in some]
    rows = [call for call in calls if call[0] == "load"]
    assert len(rows) <= 4, "only the test of two models sends rows, by reference"
    others = [call for call in calls if call[0] not in ("prompt", "load")]
    assert {call[0] for call in others} >= {"load_mixture", "submit"}
    assert len(pickle.dumps(others)) < 100_000
