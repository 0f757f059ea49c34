"""docs/results.md and the tables beside the results."""

from benchmarks.reporting import results_tables, write_results


def test_the_documents_are_what_the_script_writes(tmp_path):
    for path, text in write_results.documents(tmp_path).items():
        assert path.read_text() == text, f"run python -m benchmarks.reporting.write_results: {path} is another"


def test_figures_are_the_same_bytes_whenever_they_are_drawn(tmp_path):
    for folder in ("one", "two"):
        write_results.page(tmp_path / folder)
    for name in ("gains.svg", "claims.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_an_interval_says():
    assert [write_results.is_gain({"interval": pair}) for pair in ([0.1, 0.2], [-0.1, 0.2], [-0.2, -0.1])] == [1, 0, -1]


def test_the_latest_of_each_folder_is_read(tmp_path):
    for name, text in (("2026-01-01_zen4_aaa.json", "1"), ("2026-01-02_zen3_bbb.json", "2")):
        (tmp_path / "task").mkdir(exist_ok=True)
        (tmp_path / "task" / name).write_text(text)
    (tmp_path / "empty").mkdir()
    assert results_tables.load(tmp_path) == [2]


def test_scores_and_means_have_their_errors():
    assert results_tables.scored(0.5, 100) == "0.500 ± 0.050"
    assert results_tables.spread({"mean": 0.25, "error": None}, "+") == "+0.250"
    assert results_tables.spread({"mean": 0.25, "error": 0.01}) == "0.250 ± 0.010"
    assert results_tables.spread({"mean": None, "error": None}) == results_tables.spread(None) == ""
