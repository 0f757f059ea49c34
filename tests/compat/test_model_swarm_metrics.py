"""The final metrics of model_swarm, from small folders that are written by hand."""

import json

import pytest

from modelswarms_fast.compat.model_swarm.metrics import dev_ensemble, metrics_of, overall_metrics
from modelswarms_fast.errors import InputError

TIMES = ("starting", "ending")
KEYS = [
    "best_validation_utility", "best_particle_on_validation", "best_single_test_accuracy",
    "top-k_ensemble_test_accuracy",
]  # fmt: skip
HISTORY = ["g_history_improve_count", "g_history_last_change_index"]


def scratchpad_of(start, best, g_history=(0.5, 0.5, 0.7, 0.7)):
    content = {"g": max(best), "g_worst": 0.0, "g_history": list(g_history)}
    for i, (first, last) in enumerate(zip(start, best, strict=True)):
        content |= {f"particle_{i}_now": last, f"particle_{i}_best": last, f"particle_{i}_history": [first, last]}
    return content


def write_run(tmp_path, monkeypatch, scratchpad, ending, starting=None):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "search" / "mine"
    for place, results in (("personal_best", ending), ("now", starting or [{}] * len(ending))):
        for i, one in enumerate(results):
            folder = run / f"particle_{i}" / place
            folder.mkdir(parents=True)
            for name, content in one.items():
                (folder / f"{name}.json").write_text(json.dumps(content))
    (run / "utility_scratchpad.json").write_text(json.dumps(scratchpad))


def choices(golds, *preds):
    return [{"golds": list(golds), "preds": list(one)} for one in preds]


def test_choices_with_a_tested_start(tmp_path, monkeypatch, capsys):
    scratchpad = scratchpad_of([0.25, 0.5, 0.5], [0.5, 0.75, 0.75])
    ending = choices("ABCD", "ABZZ", "ABCZ", "ZBCD")
    write_run(tmp_path, monkeypatch, scratchpad, ending, choices("ABCD", "AZZZ", "ZBZZ", "ZBZD"))
    found = overall_metrics("mine", "multiple_choice")
    assert list(found) == [f"{time}_{key}" for time in TIMES for key in KEYS] + HISTORY
    assert list(found.values()) == [0.5, 1, 0.25, 0.25, 0.75, 1, 0.75, 0.75, 1, 2]
    assert "ending best single test accuracy:  0.75\n" in capsys.readouterr().out


def test_without_a_tested_start_its_numbers_are_left_out(tmp_path, monkeypatch):
    """model_swarm ends with an error here, or with fewer than ten particles."""
    scratchpad = scratchpad_of([0.25, 0.5], [0.5, 0.75], (0.5, 0.5))
    write_run(tmp_path, monkeypatch, scratchpad, choices("AB", "AB", "AZ"))
    found = overall_metrics("mine", "multiple_choice")
    assert list(found) == [f"ending_{key}" for key in KEYS] + HISTORY
    assert found["g_history_improve_count"] == 0
    assert found["g_history_last_change_index"] is None
    assert dev_ensemble(found) == {"ending_top-k_ensemble_dev_accuracy": 1.0}


@pytest.mark.parametrize("eval_type", ["exact_match", "rm_default", "rm_reverse", "human"])
def test_scores_are_voted_on_and_averaged(tmp_path, monkeypatch, eval_type):
    scratchpad = scratchpad_of([0.1, 0.2, 0.2], [0.3, 0.4, 0.2])
    ending = [{"scores": one} for one in ([1, 0, 0], [1, 1, 0], [0, 1, 0])]
    write_run(tmp_path, monkeypatch, scratchpad, ending)
    found = overall_metrics("mine", eval_type)
    assert found["ending_best_single_test_accuracy"] == 2 / 3
    assert found["ending_top-k_ensemble_test_accuracy"] == 2 / 3


def test_the_ensemble_of_external_api_is_a_mean_of_means():
    scores = [{"scores": one} for one in ([1.0, 0.0], [0.5, 0.0], [0.0, 0.0])]
    found = metrics_of("external_api", scratchpad_of([0.1] * 3, [0.3, 0.3, 0.1]), scores, None, top_k=1)
    assert found["ending_top-k_ensemble_test_accuracy"] == (0.5 + 0.25) / 2


def test_ties_go_by_the_utility_of_the_last_particle():
    ending = choices("A", "B", "B", "A", "A", "Z")
    positive = metrics_of("multiple_choice", scratchpad_of([0.1] * 5, [0.3] * 5), ending, None)
    negative = metrics_of("AbstainQA", scratchpad_of([0.1] * 5, [0.3] * 4 + [-0.3]), choices("Z", *"BBAAZ"), None)
    assert positive["ending_top-k_ensemble_test_accuracy"] == 0.0
    assert negative["ending_top-k_ensemble_test_accuracy"] == 1.0  # the rarest


def test_abstentions_are_compared_with_what_is_read_last():
    """Each particle has golds of its own: whether its answers were right."""
    ending = [{"golds": [1, 1], "preds": [1, 0]}, {"golds": [0, 1], "preds": [1, 1]}]
    starting = [{"golds": [1, 1], "preds": [1, 1]}, {"golds": [0, 0], "preds": [1, 0]}]
    scratchpad = scratchpad_of([0.2, 0.1], [0.5, 0.4])
    assert metrics_of("AbstainQA", scratchpad, ending, None)["ending_best_single_test_accuracy"] == 0.0
    found = metrics_of("AbstainQA", scratchpad, ending, starting)
    assert found["starting_best_single_test_accuracy"] == 0.0
    assert found["ending_best_single_test_accuracy"] == 0.5


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"utility_scratchpad\.json: No such file"):
        overall_metrics("mine", "multiple_choice")
    with pytest.raises(InputError, match="eval_type is 'perplexity'; choose multiple_choice"):
        overall_metrics("mine", "perplexity")
    write_run(tmp_path, monkeypatch, scratchpad_of([0.1], [0.1]), [{"preds": ["A"]}])
    with pytest.raises(InputError, match=r"golds\.json: No such file"):
        overall_metrics("mine", "multiple_choice")
