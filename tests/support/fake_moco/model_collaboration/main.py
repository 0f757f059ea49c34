"""The runner: reads a config, runs its method, moves the results."""

import argparse
import importlib
import json
from pathlib import Path

from model_collaboration.method import distributed_generation


def run_main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--config_file")
    parser.add_argument("-l", "--log_dir", default="logs")
    given = parser.parse_args()
    config = json.loads(Path(given.config_file).read_text())
    more = config["hyperparameters"]
    distributed_generation.update_generation_hyperparameters(
        more["max_response_length"], more["temperature"], more["top_p"], more["batch_size"]
    )
    method = importlib.import_module(f"model_collaboration.method.{config['method']}")
    result = method.run_method(config["task"], config["task_type"], config["gpu_ids"], config["model_names"], more)
    Path(given.log_dir, f"{config['task']}.json").write_text(json.dumps(result))
