"""A stand-in of model_swarm's search.py: two experts are moved towards each other, all in spawned workers."""

import argparse
import json
import os
import shutil
import sys
from multiprocessing import Pool, set_start_method

from evaluate import WORDS, evaluate
from merge import describe, lora_merge
from trl import DataCollatorForCompletionOnlyLM, SFTTrainer  # noqa: F401

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", "--name")
    parser.add_argument("-e", "--eval_type")
    parser.add_argument("-d", "--dataset")
    given = parser.parse_args()
    set_start_method("spawn")
    print("ran", os.path.basename(sys.argv[0]), describe(), WORDS)
    experts = sorted(os.listdir("initial_experts"))[:2]
    now = [f"search/{given.name}/{name}" for name in experts]
    for name, folder in zip(experts, now, strict=True):
        shutil.copytree(f"initial_experts/{name}", folder)
    jobs = [(folder, given.eval_type, given.dataset, 0, "base", True) for folder in now]
    with Pool(processes=1) as pool:
        utilities = [pool.starmap(evaluate, jobs)]
    pool = Pool(processes=1)
    pool.starmap(lora_merge, [([0.25, 0.75], now, now[0], 0, 1)])
    pool.close()
    pool.join()
    with Pool(processes=1) as pool:
        utilities.append(pool.starmap(evaluate, jobs))
    with open(f"search/{given.name}/utilities.json", "w") as file:
        json.dump(utilities, file)
    if given.name == "crash":
        sys.exit(7)
