"""What engines of a cluster print goes into the run folder, and nowhere before that is there."""

from types import SimpleNamespace

from modelswarms_fast.records import own_files
from modelswarms_fast.records.run_folder import CONFIG
from modelswarms_fast.runs.experiment import Experiment


def test_logs_wait_for_the_run_folder_and_belong_to_it(tmp_path):
    out = tmp_path / "run"
    one = SimpleNamespace(out=out, _printed={})
    Experiment._keep_log(one, 0, "loading\n")
    assert not out.exists()
    out.mkdir()
    own_files.begin(out)
    (out / CONFIG).write_text("{}")
    Experiment._keep_log(one, 1, "loading, too\n")
    Experiment._keep_log(one, 0, "serving\n")
    assert (out / "engines" / "engine-1.log").read_text() == "loading\nserving\n"
    assert (out / "engines" / "engine-2.log").read_text() == "loading, too\n"
    own_files.remove(out)
    assert not (out / "engines").exists()
