"""The files in examples/cluster are valid, and their commands are ones that this package has."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from modelswarms_fast.cli.main import app

ROOT = Path(__file__).parents[2]
FILES = ROOT / "examples" / "cluster"
COMMAND = re.compile(r"modelswarms-fast search (?:[^\n]*\\\n)*[^\n]*")


def options():
    search = typer.main.get_command(app).commands["search"]
    return {name for parameter in search.params for name in parameter.opts}


def commands():
    page = ROOT / "docs" / "how-to" / "cluster.md"
    found = [(file.name, text) for file in (FILES / "slurm.sh", page) for text in COMMAND.findall(file.read_text())]
    return [*found, ("rayjob.yaml", yaml.safe_load((FILES / "rayjob.yaml").read_text())["spec"]["entrypoint"])]


@pytest.mark.parametrize(("file", "command"), commands(), ids=lambda one: one[:40])
def test_each_command_has_options_of_search(file, command):
    given = [word for word in shlex.split(command.replace("\\\n", " ").rstrip('"')) if word.startswith("--")]
    assert set(given) <= options()
    assert "--cluster" in given


def test_the_slurm_script_is_one_of_bash():
    subprocess.run(["bash", "-n", str(FILES / "slurm.sh")], check=True)


def test_ray_takes_the_file_of_ray_up():
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(yaml.safe_load((FILES / "ray-up.yaml").read_text())))


def test_the_job_of_kuberay_has_what_a_pod_needs():
    """Its fields were checked against KubeRay's own schema (v1) when it was written."""
    spec = yaml.safe_load((FILES / "rayjob.yaml").read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    gpus = 0
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        gpus += group.get("replicas", 0) * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    assert f"--engines {gpus}" in spec["entrypoint"]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in (cluster["headGroupSpec"], workers)}
    assert len(images) == 1
