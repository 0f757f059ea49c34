"""lora_merge: bits by an arithmetic of its own, the file that it writes, and what it refuses."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers_rows import assert_same
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modelswarms_fast.compat import lora_merge
from modelswarms_fast.compat.tensors import merge_states
from modelswarms_fast.errors import InputError

WEIGHTS = (-1, 0, 1, 1.7, 0.3)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = "adapter_model.safetensors"


def state(seed, dtype=torch.float32, extra=()):
    """Tensors of some shapes, with the names that adapters have."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"base_model.model.model.layers.{i}.q_proj.lora_{half}.weight": shape for i in range(2)
              for half, shape in (("A", (4, 33)), ("B", (17, 4)))}  # fmt: skip
    shapes |= {name: (7,) for name in extra}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def adapter(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file(tensors, folder / NAME, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4} | config))
    return folder


@pytest.fixture
def two(tmp_path):
    return [adapter(tmp_path / name, state(seed)) for seed, name in enumerate("ab")]


def by_hand(weights, states, key):
    """Each product and sum in float32, from float32 weights, and then rounded."""
    first = states[0][key]
    total = None
    for weight, one in zip(weights, states, strict=True):
        if key in one:
            product = (one[key].float() * torch.tensor(weight, dtype=torch.float32)).to(first.dtype)
            total = product if total is None else (total.float() + product.float()).to(first.dtype)
    return total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", range(1, 6))
def test_bits_and_file(tmp_path, dtype, count):
    """1 to 5 adapters, the first with a tensor that no other has, the second with one that the third lacks."""
    extra = [("alone", "shared"), ("shared",), (), ("shared",), ()]
    states = [state(seed, dtype, extra[seed]) for seed in range(count)]
    folders = [adapter(tmp_path / f"{seed}", one) for seed, one in enumerate(states)]
    weights = [WEIGHTS[(count + 2 * seed) % 5] for seed in range(count)]
    merged = lora_merge(weights, [str(folder) for folder in folders], str(tmp_path / "out"), 0, 1)
    written = load_file(tmp_path / "out" / NAME)
    assert merged.keys() == written.keys() == states[0].keys()
    for key, tensor in written.items():
        assert tensor.dtype == dtype
        assert_same(tensor, by_hand(weights, states, key))
        assert_same(tensor, merged[key])


def test_nothing_but_the_weights_is_written_and_without_metadata(tmp_path, two):
    lora_merge([0.5, 0.5], two, tmp_path / "out", 3, directly_load_safetensors=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]
    with safe_open(tmp_path / "out" / NAME, framework="pt") as handle:
        assert handle.metadata() is None
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "out" / NAME).stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_output_may_be_an_input(two):
    """As where a position moves in its own folder."""
    states = [load_file(folder / NAME) for folder in two]
    expected = merge_states([1, 0.7], states)
    merged = lora_merge([1, 0.7], two, two[0], 0, 1)
    assert sorted(path.name for path in two[0].iterdir()) == ["adapter_config.json", NAME]
    for key, tensor in load_file(two[0] / NAME).items():
        assert_same(tensor, expected[key])
        assert_same(merged[key], expected[key])


def test_without_the_direct_way_sums_are_float32_and_the_last_config_goes_along(tmp_path):
    states = [state(seed, torch.bfloat16) for seed in range(2)]
    folders = [adapter(tmp_path / f"{seed}", one, lora_alpha=seed) for seed, one in enumerate(states)]
    assert lora_merge([0.3, 1.7], folders, tmp_path / "out", 0) is None
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 1
    wide = [{key: tensor.float() for key, tensor in one.items()} for one in states]
    for key, tensor in load_file(tmp_path / "out" / NAME).items():
        assert_same(tensor, by_hand([0.3, 1.7], wide, key))


def test_sums_go_from_left_to_right():
    large, small = torch.tensor([2.0**24]), torch.tensor([1.0])
    states = [{"a": large}, {"a": small}, {"a": -large}]
    assert merge_states([1, 1, 1], states)["a"].item() == 0
    assert merge_states([1, 1, 1], [states[0], states[2], states[1]])["a"].item() == 1


def test_numbers_of_numpy_are_weights_too(tmp_path, two):
    merged = lora_merge(np.array([0.25, 0.75]).tolist(), two, tmp_path / "out", 0, 1)
    other = lora_merge([np.float64(0.25), np.float64(0.75)], two, tmp_path / "other", 0, 1)
    for key, tensor in merged.items():
        assert_same(other[key], tensor)


def refused(tmp_path, match, *arguments, **options):
    """One sentence, and no new file anywhere."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=match):
        lora_merge(*arguments, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_adapters_that_do_not_fit_are_refused(tmp_path, two):
    out = tmp_path / "out"
    more = adapter(tmp_path / "more", state(2, extra=("more",)))
    wide = adapter(tmp_path / "wide", {key: tensor[:, :9].contiguous() for key, tensor in state(3).items()})
    refused(
        tmp_path, f"more/{NAME} has a tensor more that .*a/{NAME} lacks; give it first", [1, 1], [two[0], more], out
    )
    refused(tmp_path, r"lora_A.weight has shape \[4, 9\], but \[4, 33\] in", [1, 1], [two[0], wide], out)
    refused(tmp_path, "1 weights are given for 2 adapters", [1], two, out, 0, 1)
    refused(tmp_path, "0 weights are given for 0 adapters", [], [], out, 0, 1)
    refused(tmp_path, "weights is .*; give a list, of which each is a number", ["a", 1], two, out, 0, 1)


@pytest.mark.parametrize("directly", [0, 1])
def test_adapters_of_two_ranks_are_refused_by_both_folders_and_ranks(tmp_path, two, directly):
    low = {key: (one[:2] if "lora_A" in key else one[:, :2]).contiguous() for key, one in state(3).items()}
    other = adapter(tmp_path / "low", low)
    sentence = f"{other} has rank 2, but {two[0]} has rank 4 .*give adapters of one rank"
    refused(tmp_path, sentence, [1, 1], [two[0], other], tmp_path / "out", 0, directly)


def test_files_that_cannot_be_read_are_refused(tmp_path, two):
    out = tmp_path / "out"
    refused(tmp_path, f"nowhere/{NAME} is missing", [1], [tmp_path / "nowhere"], out, 0, 1)
    shutil.copytree(two[0], tmp_path / "pickled")
    (tmp_path / "pickled" / NAME).rename(tmp_path / "pickled" / "adapter_model.bin")
    refused(tmp_path, "adapter_model.bin is a pickle, which is never loaded", [1], [tmp_path / "pickled"], out, 0, 1)
    (two[1] / NAME).write_bytes((two[1] / NAME).read_bytes()[:-1])
    refused(tmp_path, f"b/{NAME} is not a complete safetensors file", [1, 1], two, out, 0, 1)
    (two[0] / "adapter_config.json").unlink()
    refused(tmp_path, "adapter_config.json is missing; give the folder of an adapter, or", [1], two[:1], out)


def test_places_that_cannot_be_written_are_refused(tmp_path, two):
    refused(tmp_path, "no/out could not be written .No such file", [1, 1], two, tmp_path / "no" / "out", 0, 1)
    (tmp_path / "file").touch()
    refused(tmp_path, "file could not be written .Not a directory", [1, 1], two, tmp_path / "file", 0, 1)


def test_a_full_disk_leaves_the_old_file(tmp_path, two, monkeypatch):
    before = (two[0] / NAME).read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelswarms_fast.compat.tensors.sync", full)
    refused(tmp_path, "could not be written .No space left on device", [1, 1], two, two[0], 0, 1)
    refused(tmp_path, "could not be written .No space left on device", [1, 1], two, tmp_path / "out", 0, 0)
    assert (two[0] / NAME).read_bytes() == before
