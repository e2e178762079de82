"""Connecting to a Ray cluster: a given one, the one in RAY_ADDRESS, or a local one."""

import contextlib
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import stamina

from actors.garbage import uncollected
from cluster.logs import FORMAT
from cluster.repository import REPOSITORY
from search.errors import ClusterError, one_line

# Work units and replicas wait on each other more than they compute, so a small machine
# offers more logical cores than it has.
LOCAL_LOGICAL_CORES = 8
# Ray starts a worker for each logical core at once, without the job's environment and so of no
# use to it, and ends those that it needs a second later.
WORKERS = {
    "prestart_worker_first_driver": False,
    "idle_worker_killing_time_threshold_ms": 60_000,
}
# Read by Serve's controller, which has the environment of the job that starts Serve. Spread over
# machines, replicas with one GPU leave no machine with two for a larger one.
PACKS = {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1"}
# From what Serve calls its throughput settings: a replica's methods run in the loop that its lines
# run in, and its address is asked for over gRPC (half the processor time of an object reference).
# Read when ray.serve is imported, by this process and all workers.
SERVE_SETTINGS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Each handle and replica tells Serve's own metrics ten times a second else.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    # How often replicas say how many sequences they have, where their number follows it.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}
# Read when ray is imported. Otherwise a call that a run which ends has left in a thread would start
# a Ray of its own, once this one is shut down.
RAY_SETTINGS = {"RAY_ENABLE_AUTO_CONNECT": "0"}
# Set by Ray's job server, which also ships the working directory to every worker: JSON with the
# `runtime_env` and `metadata` that the job was submitted with.
SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# What to set where a cluster asks for a token, in words for a reader.
SET_TOKEN = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file) to the cluster's "
    "token, or write it to ~/.ray/auth_token"
)
_VERSIONS = re.compile(r"Ray:\s*(\S+)\s+Python:\s*(\S+)")

log = logging.getLogger("branchwise")


@contextlib.contextmanager
def connected(address: str | None, packs_replicas: bool = False) -> Iterator[bool]:
    """A connection for the length of a run; a local cluster ends with it.

    Gives whether others may be on the cluster too.

    `packs_replicas`: Serve fills machines one by one, as models on GPUs need it, instead of
    spreading replicas; it has no effect if Serve runs on the cluster already.
    """
    os.environ.update(RAY_SETTINGS)
    with uncollected():
        import ray

    already, target = ray.is_initialized(), address or os.environ.get("RAY_ADDRESS")
    if not already:
        _start(target, PACKS if packs_replicas else {})
    try:
        yield not already and target is not None
    finally:
        if not already:
            ray.shutdown()


def _start(target: str | None, serve_environment: dict[str, str]) -> None:
    os.environ.update(SERVE_SETTINGS)
    environment = _worker_environment() | serve_environment
    if target is None:
        _start_local(environment)
        return
    if target.startswith(("http://", "https://")):
        raise ClusterError(
            f"{target} is the address of a job server: send the run there with branchwise submit, "
            "or give the cluster's own address, such as auto or HOST:6379"
        )
    from ray.exceptions import AuthenticationError

    try:
        _init(address=target, runtime_env={"env_vars": environment})
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        raise ClusterError(_no_connection(target, error)) from error


def _no_connection(target: str, error: Exception) -> str:
    """Why a cluster cannot be joined, in one line."""
    from ray.exceptions import AuthenticationError

    found = _VERSIONS.findall(str(error))
    if len(found) == 2:
        (theirs, their_python), (ours, our_python) = found
        return (
            f"the cluster at {target} runs Ray {theirs} on Python {their_python} and this process "
            f"Ray {ours} on Python {our_python}: use the same versions here, or send the run as a "
            "job with branchwise submit"
        )
    if isinstance(error, AuthenticationError):
        return f"the cluster at {target} does not accept this process's token: {SET_TOKEN}"
    return f"cannot reach the Ray cluster at {target}: {one_line(error)}"


@stamina.retry(on=(RuntimeError, TimeoutError), attempts=2, wait_initial=5.0)
def _start_local(environment: dict[str, str]) -> None:
    """Under load the raylet can miss its fixed 30 s start wait: tried twice.

    Workers have the environment that Ray is started in: one given as a runtime environment is made
    by an agent, which takes seconds to start itself.
    """
    cores = max(LOCAL_LOGICAL_CORES, os.cpu_count() or 1)
    try:
        with _environment(environment):
            _init(address="local", num_cpus=cores, include_dashboard=False, _system_config=WORKERS)
    except (RuntimeError, TimeoutError) as error:
        log.warning("Ray did not start on this machine: %s", one_line(error))
        raise


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets them for this process and what it starts meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _worker_environment() -> dict[str, str]:
    """Workers keep quiet, and import this checkout unless a submitted job brought its own."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    quiet |= SERVE_SETTINGS
    quiet |= {name: os.environ[name] for name in (FORMAT,) if name in os.environ}
    if SUBMITTED_JOB in os.environ:
        # Ray refuses a variable that a job and its driver set to different values.
        given = job_config().get("runtime_env", {}).get("env_vars") or {}
        return {name: value for name, value in quiet.items() if name not in given}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return quiet | {"PYTHONPATH": path}


def job_config() -> dict[str, Any]:
    """What the job that this process drives was submitted with; empty if it is none."""
    found: dict[str, Any] = json.loads(os.environ.get(SUBMITTED_JOB, "{}"))
    return found


def _init(**options: Any) -> None:
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    importing = threading.Thread(target=_import_serve)
    importing.start()
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        # Ray's word for a node that takes too long is a bare Exception.
        raise (TimeoutError(one_line(error)) if type(error) is Exception else error) from None
    finally:
        importing.join()
    # Ray puts its own in the place of the command line's, which ends a run in order.
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _import_serve() -> None:
    """A second of a core, while this process waits for those that Ray starts."""
    with uncollected():
        from ray import serve

    del serve
