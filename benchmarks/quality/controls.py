"""Controls of the study of policies: experts that know nothing, and the dev examples as training data.

    python -m benchmarks.quality.controls random EXPERTS OUT      # experts of random numbers, to be searched as others
    python -m benchmarks.quality.controls dev FILE.json N OUT     # OUT/dev.jsonl, for benchmarks.quality.train_pool

A random expert has a tensor's shape, dtype and norm from a real one: what a search gains from such is no skill of the
experts. An adapter trained on the N dev examples that a search is steered by is the other use of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modelswarms_fast.records.run_folder import read_json


def random_expert(source: Path, folder: Path) -> None:
    """An expert whose tensors are normal random numbers with the norms of those of another, seeded by its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(source.name.encode()))
    tensors = {}
    for name, tensor in sorted(load_file(source / "adapter_model.safetensors").items()):
        drawn = torch.randn(tensor.shape, generator=generator)
        tensors[name] = (drawn * (tensor.float().norm() / drawn.norm())).to(tensor.dtype)
    folder.mkdir(parents=True)
    shutil.copy(source / "adapter_config.json", folder)
    save_file(tensors, folder / "adapter_model.safetensors")


def training_file(data: Path, count: int, out: Path) -> None:
    """Write the first dev examples of a file as {"prompt", "completion"} lines."""
    examples = read_json(data)["dev"][:count]
    lines = [json.dumps({"prompt": one["question"], "completion": one["answer"]}) for one in examples]
    out.mkdir(parents=True, exist_ok=True)
    (out / "dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Make one control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    experts = kinds.add_parser("random")
    experts.add_argument("experts", type=Path)
    experts.add_argument("out", type=Path)
    dev = kinds.add_parser("dev")
    dev.add_argument("data", type=Path)
    dev.add_argument("count", type=int)
    dev.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.kind == "dev":
        training_file(given.data, given.count, given.out)
        return
    for source in sorted(path for path in given.experts.iterdir() if (path / "adapter_config.json").exists()):
        random_expert(source, given.out / source.name)


if __name__ == "__main__":
    main()
