"""ray_cluster.yaml, cluster/slurm.sh and the Dockerfile: checked, and started for real.

Clouds, Slurm and Docker are not there. The cluster file is started with Ray's fake machines in
the place of AWS, and nothing else changed but what a machine has; the Slurm script with stand-ins
for Slurm's commands.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from alone import ray_tool, reason_not_permitted, run_alone, tool

ROOT = Path(__file__).resolve().parent.parent
CLUSTER_FILE = ROOT / "ray_cluster.yaml"
SLURM = ROOT / "cluster" / "slurm.sh"
DOCKERFILE = ROOT / "Dockerfile"
TOKEN = "0123456789abcdef" * 4
# What Ray calls the head of a fake cluster, and its type.
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
HEAD_TYPE = "ray.head.default"
IDLE_S = 3


def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER_FILE.read_text())  # type: ignore[no-any-return]


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` reads it before it speaks to the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = prepare_config(config)
    validate_config(made)
    return made


@pytest.mark.unit
def test_the_launcher_takes_the_cluster_file() -> None:
    made = prepared(cluster())
    assert made["available_node_types"].keys() == {"head", "policy_worker", "prm_worker"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ((), "idle_timeout_minutes", "idle_timeout_minute"),
        (("available_node_types", "prm_worker"), "min_workers", "min_worker"),
        (("docker",), "run_options", "runs_options"),
    ],
)
def test_the_launcher_refuses_a_misspelt_key(place: tuple[str, ...], old: str, new: str) -> None:
    config = part = cluster()
    for name in place:
        part = part[name]
    part[new] = part.pop(old)
    with pytest.raises(jsonschema.ValidationError):
        prepared(config)


@pytest.mark.unit
def test_gpu_workers_are_spot_machines_and_there_only_while_there_is_work() -> None:
    config = cluster()
    types = config["available_node_types"]
    for name in ("policy_worker", "prm_worker"):
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert sum(one["max_workers"] for one in types.values()) <= config["max_workers"]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.unit
def test_images_have_the_pinned_ray() -> None:
    docker = cluster()["docker"]
    images = [docker["head_image"], docker["worker_image"]]
    images += re.findall(r"rayproject/ray:\S+", DOCKERFILE.read_text())
    assert len(images) >= 3
    for image in images:
        assert image.startswith(f"rayproject/ray:{pinned('ray')}-py311-")


@pytest.mark.unit
def test_every_part_of_the_cluster_asks_for_the_token() -> None:
    config = cluster()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "export RAY_AUTH_MODE=token" in commands[-1]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "RAY_AUTH_MODE=token" in DOCKERFILE.read_text()
    assert "export RAY_AUTH_MODE=token" in SLURM.read_text()


@pytest.mark.unit
def test_lost_machines_are_found_as_recommended() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    period_ms, timeout_ms = re.findall(r"\| \*\*(\d+)\*\* \| \*\*(\d+)\*\*", page)[0]
    for text in (cluster()["head_start_ray_commands"][-1], SLURM.read_text()):
        assert f"RAY_health_check_period_ms={period_ms}" in text
        assert f"RAY_health_check_timeout_ms={timeout_ms}" in text


def installed(name: str) -> str:
    """The path of a program that a package for tests brought; without it the test fails."""
    folders = [sysconfig.get_path("scripts"), *(f"{path}/bin" for path in sys.path)]
    return next(str(Path(folder, name)) for folder in folders if Path(folder, name).exists())


@pytest.mark.unit
def test_the_slurm_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    done = subprocess.run([installed("shellcheck"), str(SLURM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.unit
def test_the_dockerfile_is_sound() -> None:
    done = subprocess.run([installed("hadolint"), str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.unit
def test_the_image_gets_what_it_is_made_of_and_nothing_else() -> None:
    """What is copied is there, and all packages are; the ignore file lets through the same."""
    copied = {
        name
        for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
        for name in line.split()
    }
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert copied == {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    project = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^include = \[(.+)\]$", project, re.MULTILINE)
    assert found
    assert set(re.findall(r'"(\w+)\*"', found[1])) <= copied


FAKE_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of commands; HOME is beside it, and has a token."""
    reason = reason_not_permitted(tmp_path)
    if reason:
        pytest.skip(reason)
    folder = tmp_path / "tools"
    folder.mkdir()
    ray_tool(folder)
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    return folder


def fake_cluster() -> dict[str, Any]:
    """Our cluster on fake machines, which have what AWS says of the real ones."""
    config = cluster()
    del config["docker"], config["file_mounts"]
    config["provider"] = {
        # By its class: by its name Ray looks for a file that its package lacks.
        "type": "external",
        "module": FAKE_PROVIDER,
        "launch_multiple": True,
        "head_node_id": HEAD,
        "disable_node_updaters": True,
    }
    config["idle_timeout_minutes"] = IDLE_S / 60
    types = config["available_node_types"]
    types["policy_worker"]["resources"] = {"CPU": 8, "GPU": 1}
    types["prm_worker"]["resources"] = {"CPU": 48, "GPU": 4}
    types[HEAD_TYPE] = types.pop("head") | {"resources": {"CPU": 1}}
    config["head_node_type"] = HEAD_TYPE
    for phase in ("initialization", "setup", "head_setup", "worker_setup", "worker_start_ray"):
        config[f"{phase}_commands"] = []
    return config | {"file_mounts": {}, "cluster_synced_files": []}


# Runs where the head is: asks for what models ask for, and writes which machines came and went.
WATCH = """
import json, sys, time, urllib.error, urllib.request
import ray
from ray.autoscaler.v2.sdk import get_cluster_status

def status(token):
    request = urllib.request.Request("http://127.0.0.1:8265/api/version")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code

def machines():
    found = get_cluster_status(ray.get_runtime_context().gcs_address)
    return sorted(node.ray_node_type_name for node in [*found.active_nodes, *found.idle_nodes])

def wait_for(*wanted):
    found = None
    while found != sorted(wanted):
        time.sleep(0.2)
        before, found = found, machines()
        if found != before:
            print("there are", found, flush=True)
    print("REACHED", json.dumps(found), flush=True)

head, token = sys.argv[1:]
print("ASKED", status(""), status(token), flush=True)
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_cpus=1)
def holds_gpus():
    time.sleep(600)

wait_for(head)
policy = holds_gpus.options(num_gpus=1).remote()
wait_for(head, "policy_worker")
prm = holds_gpus.options(num_gpus=4).remote()
wait_for(head, "policy_worker", "prm_worker")
ray.cancel(policy, force=True)
ray.cancel(prm, force=True)
wait_for(head)
"""


@pytest.mark.ray
def test_machines_come_for_gpus_and_leave_when_idle(tools: Path, tmp_path: Path) -> None:
    from ray.autoscaler._private.util import with_envs

    home = tmp_path / "home"
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps(fake_cluster()))
    (tmp_path / "watch.py").write_text(WATCH)
    # What `ray up` adds to the commands of the file.
    added = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    lines = with_envs(cluster()["head_start_ray_commands"], added)
    lines += [f"RAY_AUTH_MODE=token {sys.executable} {tmp_path}/watch.py {HEAD_TYPE} {TOKEN}"]
    environment = {
        "HOME": str(home),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_prestart_worker_first_driver": "0",
    }
    done = run_alone(["bash", "-c", "\n".join(lines)], tools, environment, 120)
    assert done.returncode == 0, done.stdout
    assert "ASKED 401 200" in done.stdout
    reached = re.findall(r"^REACHED (.*)$", done.stdout, re.MULTILINE)
    assert [json.loads(line) for line in reached] == [
        [HEAD_TYPE],
        ["policy_worker", HEAD_TYPE],
        ["policy_worker", "prm_worker", HEAD_TYPE],
        [HEAD_TYPE],
    ]


# In the place of `python -m jobs run ...`: says what it was told and what the cluster has.
ENTRYPOINT = """#!{python}
import json, pathlib, sys
import ray
ray.init(address="auto", log_to_driver=False)
told = {{"words": sys.argv[1:], "cores": ray.cluster_resources()["CPU"]}}
pathlib.Path("told.json").write_text(json.dumps(told))
sys.exit(3)
"""


@pytest.mark.ray
def test_the_slurm_script_starts_a_cluster_and_ends_as_the_run_does(
    tools: Path, tmp_path: Path
) -> None:
    tool(tools, "scontrol", "#!/bin/sh\necho 198.18.0.1\n")
    tool(tools, "srun", '#!/bin/sh\nshift\nexec "$@"\n')
    tool(tools, "python", ENTRYPOINT.format(python=sys.executable))
    environment = {
        "HOME": str(tmp_path / "home"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "machine[1-1]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "2",
        "RAY_prestart_worker_first_driver": "0",
    }
    words = [str(SLURM), "a recipe.yaml", "seed=1"]
    done = run_alone(words, tools, environment, 120)
    assert done.returncode == 3, done.stdout
    runs = tmp_path / "runs"
    told = json.loads((tmp_path / "told.json").read_text())
    asked = ["-m", "jobs", "run", "a recipe.yaml", "seed=1", f"runs_folder={runs}"]
    assert told == {"words": [*asked, "--address", "auto"], "cores": 2.0}
    assert os.listdir(runs) == []


@pytest.mark.unit
def test_the_slurm_script_fails_when_ray_does_not_start(tmp_path: Path) -> None:
    # symmetric-run itself ends with 0 then.
    for name, text in (("ray", "exit 0"), ("scontrol", "echo here"), ("srun", 'shift; exec "$@"')):
        tool(tmp_path, name, f"#!/bin/sh\n{text}\n")
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "2",
    }
    words = [str(SLURM), "recipe.yaml"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the run did not start: see above\n"
