"""A Ray cluster on this machine that adds nodes when work waits for room, and takes them away.

Ray's autoscaler with its fake provider, whose nodes are processes here. `AutoscalingCluster` of
`ray.cluster_utils` would run `ray stop`, which ends every Ray of the machine.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from free_ports import free_ports
from ray_head import end

IDLE_MINUTES = 0.1
HEAD = "ray.head.default"
PHASES = ("head_setup", "worker_setup", "setup", "initialization")
NOTHING = [*(f"{phase}_commands" for phase in PHASES), "cluster_synced_files"]
NOTHING += ["head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter"]


@contextlib.contextmanager
def growing_cluster(folder: Path, head_cpus: int, machines: dict[str, Any]) -> Iterator[str]:
    """Its address. machines: the node types that may be added, as in a cluster file."""
    [port] = free_ports(1)
    config = folder / "cluster.yaml"
    config.write_text(yaml.safe_dump(_config(f"127.0.0.1:{port}", head_cpus, machines)))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={head_cpus}"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    sockets = tempfile.mkdtemp(prefix="bw-", dir="/tmp")  # short, for its sockets' sake
    command += [f"--autoscaling-config={config}", f"--temp-dir={sockets}"]
    settings = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        try:
            _wait_for(port, head)
            yield f"127.0.0.1:{port}"
        finally:
            end(head)
            shutil.rmtree(sockets, ignore_errors=True)


def _config(address: str, head_cpus: int, machines: dict[str, Any]) -> dict[str, Any]:
    # Its nodes are known by their ids, and nothing is installed on them.
    switches = ("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")
    provider = {"type": "fake_multinode", "gcs_address": address} | dict.fromkeys(switches, True)
    head = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "growing",
        "max_workers": 8,
        "upscaling_speed": 8,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider,
        "available_node_types": machines | {HEAD: head},
        "head_node_type": HEAD,
        "auth": {},
        "file_mounts": {},
        **{key: [] for key in NOTHING},
    }


def _wait_for(port: int, head: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        if head.poll() is not None:
            raise RuntimeError("the head ended before it was up")
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(0.1)
    raise TimeoutError("the head did not come up")
