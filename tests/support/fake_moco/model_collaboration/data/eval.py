"""Inputs, and scores of outputs."""

INPUTS = {"dev": ["bad", "dig", "fun", "cat"], "test": ["hot", "mix", "lap"]}
loaded: list = []
"""What was loaded, and the engines that were resident then."""


def engines():
    from modelswarms_fast.compat.moco.session import session

    return len(session().fleet._engines)


def load_reward_model(gpu_id=0, model_name="Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"):
    loaded.append(("reward", engines()))


def prepare_inputs(task, task_type, split, ratio=1.0, return_id=False):
    return INPUTS[split]


def get_scores(task, task_type, split, outputs, ratio=1.0, return_output=False, id_list=None):
    loaded.append((task_type, engines()))
    if task_type == "reward_model":
        load_reward_model()
    if task_type == "general_verifier":
        general_verifier_score(task, split, outputs)
    return [sum(0.1 * "zaeiou".find(letter) + 0.3 for letter in one) / (len(one) or 1) for one in outputs]


def general_verifier_score(task, split, outputs, ratio=1.0, id_list=None):
    loaded.append(("verifier", engines()))
