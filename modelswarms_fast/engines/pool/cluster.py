"""A Ray cluster: how this process joins it, what it has to have room for, and what its nodes read by themselves.

Ray is imported when a cluster is asked for, and not before.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast import __version__
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.weights.arena import row_stride
from modelswarms_fast.weights.base_model import digest_of_base
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.row_name import row_name

CONNECT_LIMIT = 60.0  # seconds in which a cluster answers
PLACE_LIMIT = 60.0  # and those in which it has room, if others use it


def join(address: str) -> bool:
    """Make this process a driver of the cluster, unless it is one already; whether it was this call that did.

    Args:
        address: `local` for a cluster of this machine, `auto` for the one that RAY_ADDRESS names or that runs here, or
            HOST:PORT of a head node.

    Raises:
        InputError: Ray is not installed, or does not answer there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"cluster is {quoted(address)} but Ray cannot be imported ({short(error)}); install modelswarms-fast[ray], "
            "or leave cluster out."
        ) from error
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is that of work in the background
        ray.init(address="local", include_dashboard=False, **quiet)
        return True
    where = (os.environ.get("RAY_ADDRESS") or "auto") if address == "auto" else address
    if "://" in where:
        raise InputError(
            f"cluster is {quoted(where)}; start the search on a node, and give HOST:PORT of the head node."
        )
    if where != "auto":
        _check_answer(where)
    try:
        ray.init(address=where, **quiet)
    except (Exception, SystemExit) as error:  # Ray ends the process where its server does not answer
        raise InputError(
            f"cluster is {quoted(where)} but this machine cannot join it ({short(error, 300)}); run ray start "
            "--address HOST:PORT here first, with the cluster's versions of Python and Ray."
        ) from error
    return True


def _check_answer(where: str) -> None:
    """Raise InputError where no Ray answers. Another process asks: Ray would wait for minutes and end this one."""
    wrong = InputError(f"cluster is {quoted(where)} but no Ray answers there; give HOST:PORT of a head node.")
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_LIMIT / 4).close()
    except (OSError, ValueError, OverflowError) as error:
        raise wrong from error
    script = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).get_all_node_info()"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", script, where],
            timeout=CONNECT_LIMIT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"RAY_gcs_rpc_server_connect_timeout_s": "5"},
        )
        answers = asked.returncode == 0
    except subprocess.TimeoutExpired:
        answers = False
    if not answers:
        raise wrong


def bundle_of(nodes: Sequence[dict[str, float]], engines: int, ranks: int) -> dict[str, float]:
    """What each engine gets of a cluster: `ranks` GPUs of one node, or where there are none its share of the cores.

    Args:
        nodes: the resources of each node, by Ray's names.

    Raises:
        InputError: there are too few; the message says what there is and what is missing.
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if sum(gpus):
        room = sum(count // ranks for count in gpus)
        if room < engines:
            has = ", ".join(map(str, gpus))
            raise InputError(
                f"engines is {engines} and tensor_parallel {ranks}, but the nodes of the cluster have {has} GPUs, "
                f"room for {room}: {(engines - room) * ranks} GPUs are missing; add nodes or lower engines."
            )
        return {"GPU": float(ranks)}
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if sum(cores) < engines:
        raise InputError(
            f"engines is {engines} but the cluster has {sum(cores)} cores and no GPU: {engines - sum(cores)} are "
            "missing; add nodes or lower engines."
        )
    each = sum(cores) // engines
    while sum(count // each for count in cores) < engines:
        each -= 1
    return {"CPU": float(each)}


def reserve(engines: int, ranks: int) -> tuple[Any, dict[str, float]]:
    """A placement group with a bundle for each engine, spread over the nodes, and what is in each.

    Raises:
        InputError: the cluster is too small, or others use it.
    """
    import ray

    bundle = bundle_of([node["Resources"] for node in ray.nodes() if node["Alive"]], engines, ranks)
    group = ray.util.placement_group([bundle] * engines, strategy="SPREAD")
    if not group.wait(PLACE_LIMIT):
        ray.util.remove_placement_group(group)
        ((what, count),) = bundle.items()
        free = ray.available_resources().get(what, 0.0)
        raise InputError(
            f"engines is {engines}, each with {count:.0f} {what}, but others use the cluster, where {free:.0f} {what} "
            f"were free after {PLACE_LIMIT:.0f} s; wait for them, or lower engines."
        )
    return group, bundle


def versions() -> dict[str, str]:
    """What a node must have as the driver has it."""
    import ray

    return {"Python": platform.python_version(), "Ray": ray.__version__, "modelswarms-fast": __version__}


def check_versions(node: str, found: dict[str, str]) -> None:
    """Raise InputError for a node with other versions than this process."""
    for name, mine in versions().items():
        if found.get(name) != mine:
            raise InputError(
                f"The node {node} has {name} {found.get(name)}, but this machine has {mine}; install the same on each."
            )


@dataclass(frozen=True)
class Start:
    """What engine to start on a node. The rows of `experts` are left out."""

    base: Path
    experts: Experts | None
    config: EngineConfig
    base_digest: str
    digests: tuple[str, ...]
    """Of each expert's row."""


def start_of(base: Path, experts: Experts | None, config: EngineConfig) -> Start:
    """What engines of this base and these experts are told."""
    base, digests, nothing = base.absolute(), (), torch.empty(0)
    names: tuple[str, ...] = tuple(row_name(row).hex() for row in experts.rows) if experts is not None else digests
    if experts is not None:
        sources = tuple(str(Path(one).absolute()) if Path(one).exists() else one for one in experts.sources)
        folder = None if experts.base is None else experts.base.absolute()
        experts = replace(experts, sources=sources, base=folder, rows=nothing, room=nothing)
    return Start(base, experts, replace(config, engines=1, cluster=None), digest_of_base(base), names)


def read_on_node(start: Start, node: str) -> tuple[str | None, Any]:
    """Read the experts of a node's own files: what is wrong, if anything, and the bytes [n, stride] of their rows.

    The rows are None where the node does not have the experts: it is given the driver's.
    """
    try:
        digest = digest_of_base(start.base)
    except (OSError, ValueError) as error:
        return (
            f"The node {node} cannot read the base model {start.base} ({short(error)}); put it into a folder that all "
            "nodes share, or copy it to the same path."
        ), None
    if digest != start.base_digest:
        return f"The base model {start.base} on the node {node} is not this machine's; copy it there anew.", None
    experts = start.experts
    if experts is None:
        return None, None
    try:
        layout = experts.layout
        found = read_experts(list(experts.sources), dtype=layout.dtype, base=experts.base, minimum=1, place=_whole_rows)
    except InputError:
        return None, None
    for source, row, name in zip(experts.sources, found.rows, start.digests, strict=True):
        if found.layout != layout or row_name(row).hex() != name:
            return f"The expert {source} on the node {node} is not this machine's; copy it there anew.", None
    return None, to_bytes(found.room)


def to_bytes(rows: torch.Tensor) -> Any:
    """Rows [n, D] as a NumPy array of bytes [n, stride], which Ray shares without a copy."""
    stride = row_stride(rows.shape[1], rows.dtype)
    if (
        rows.stride(0) != stride
        or rows.storage_offset()
        or (rows.untyped_storage().nbytes() < len(rows) * stride * rows.itemsize)
    ):
        rows = _whole_rows(len(rows), rows.shape[1], rows.dtype).copy_(rows)
    return rows.as_strided((len(rows), stride), (stride, 1)).view(torch.uint8).numpy()


def of_bytes(array: Any, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows [n, size] of such an array, to be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no tensors that are only read
        return torch.from_numpy(array).view(dtype)[:, :size]


def _whole_rows(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """As `empty_rows`, with all of the last row's stride."""
    return torch.zeros((count, row_stride(size, dtype)), dtype=dtype)[:, :size]
