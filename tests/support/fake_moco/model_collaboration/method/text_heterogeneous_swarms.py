"""A method whose workers generate."""

from multiprocessing import Pool

from model_collaboration.method import distributed_generation


def graph_generate(prompts, model_name):
    return distributed_generation.batch_generate_text(model_name, 0, prompts, 4, 0.7, 1e-6, 2)


def run_method(task, task_type, gpu_ids, model_names, hyperparameters):
    pool = Pool(len(model_names))
    found = pool.starmap(graph_generate, [(["bad", "dig"], name) for name in model_names])
    pool.close()
    pool.join()
    return found
