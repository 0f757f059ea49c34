"""A search with the swarm."""

from model_collaboration.data import eval
from model_collaboration.method import distributed_generation
from model_collaboration.utils import swarm


def run_method(task, task_type, gpu_ids, model_names, hyperparameters):
    one = swarm.Swarm(
        hyperparameters["swarm_base_path"], model_names, model_names[0], True, "random", True,
        0.2, 0.3, 0.4, 0.05, 0.5, True, 0.95, 0.1, gpu_ids, 5, 3,
    )  # fmt: skip
    scores = []
    for _ in range(hyperparameters["max_iterations"]):
        paths = one.get_model_paths()
        inputs = eval.prepare_inputs(task, task_type, "dev")
        outputs = distributed_generation.distributed_generation(paths, [inputs] * len(paths), gpu_ids)
        scores.append(
            [sum(found) / len(found) for found in (eval.get_scores(task, task_type, "dev", each) for each in outputs)]
        )
        if one.update(scores[-1]):
            break
    one.clean_up()
    inputs = eval.prepare_inputs(task, task_type, "test")
    test = distributed_generation.distributed_generation([one.get_global_best_path()], [inputs], gpu_ids[:1])
    return {"scores": scores, "test": test[0]}
