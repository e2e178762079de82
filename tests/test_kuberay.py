"""The manifests of cluster/kuberay, against the schemas of Kubernetes and of KubeRay.

Kubernetes' own schemas come with the package kubernetes-validate; of KubeRay's CRDs
tests/crd_schemas holds what the manifests use.
"""

import copy
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from kustomized import Manifest, rendered
from referencing import Registry, Resource

from actors.spec import ModelSpec
from cluster.connect import SERVE_SETTINGS
from cluster.serving import build
from jobs.recipe import load_recipe
from search.errors import ClusterError

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore"),  # importing Ray Serve warns
]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster" / "kuberay"
FOLDERS = sorted(path.parent.name for path in FOLDER.glob("*/kustomization.yaml"))
KUBERNETES = "1.34.0"
KUBERAY = ROOT / "tests" / "crd_schemas" / "kuberay-1.6.yaml"
IN_IMAGE = "/home/ray/branchwise"


manifests = functools.cache(lambda folder: rendered(FOLDER / folder))


def of_kind(folder: str, kind: str) -> Manifest:
    """A copy, to be changed at will."""
    (found,) = (one for one in manifests(folder) if one["kind"] == kind)
    return copy.deepcopy(found)


@functools.cache
def kuberay_validator() -> Draft202012Validator:
    versions = resources.files(kubernetes_validate) / "kubernetes-json-schema"
    definitions = versions / f"v{KUBERNETES}-local-strict" / "_definitions.json"
    known = Registry().with_resource(
        "https://kubernetes.io/api/_definitions.json",
        Resource.from_contents(json.loads(definitions.read_text())),
    )
    return Draft202012Validator(yaml.safe_load(KUBERAY.read_text()), registry=known)


def check(manifest: Manifest) -> None:
    """Raises ValidationError; no key that the schemas do not know is let through."""
    if manifest["apiVersion"].startswith("ray.io/"):
        kuberay_validator().validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def clusters() -> dict[str, Manifest]:
    """The cluster's specification in each folder, where it was copied to."""
    return {
        "cluster": of_kind("cluster", "RayCluster")["spec"],
        "job": of_kind("job", "RayJob")["spec"]["rayClusterSpec"],
        "nightly": of_kind("nightly", "RayJob")["spec"]["rayClusterSpec"],
        "raycronjob": of_kind("raycronjob", "RayCronJob")["spec"]["jobTemplate"]["rayClusterSpec"],
        "service": of_kind("service", "RayService")["spec"]["rayClusterConfig"],
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_keeps_its_schema(folder: str) -> None:
    for manifest in manifests(folder):
        check(manifest)


def test_all_folders_are_looked_at_and_have_the_same_machines() -> None:
    assert sorted(clusters()) == FOLDERS
    assert all(spec == clusters()["cluster"] for spec in clusters().values())


Misspell = Callable[[Manifest], None]


def renamed(old: str, new: str) -> Misspell:
    def rename(value: Any) -> None:
        if isinstance(value, dict):
            if old in value:
                value[new] = value.pop(old)
            for inner in value.values():
                rename(inner)
        elif isinstance(value, list):
            for inner in value:
                rename(inner)

    return rename


@pytest.mark.parametrize(
    ("folder", "kind", "old", "new"),
    [
        ("cluster", "RayCluster", "enableInTreeAutoscaling", "enableInTreeAutoScaling"),
        ("cluster", "RayCluster", "minReplicas", "minReplica"),
        ("cluster", "RayCluster", "idleTimeoutSeconds", "idleTimeoutMinutes"),
        ("cluster", "RayCluster", "tolerations", "toleration"),
        ("cluster", "RayCluster", "envFrom", "envfrom"),
        ("job", "RayJob", "shutdownAfterJobFinishes", "shutdownAfterJobFinished"),
        ("raycronjob", "RayCronJob", "schedule", "cron"),
        ("service", "RayService", "serveConfigV2", "serveConfig"),
        ("nightly", "CronJob", "concurrencyPolicy", "concurencyPolicy"),
        ("nightly", "CronJob", "serviceAccountName", "serviceAcountName"),
        ("nightly", "Role", "verbs", "verb"),
    ],
)
def test_a_misspelt_key_is_found(folder: str, kind: str, old: str, new: str) -> None:
    manifest = of_kind(folder, kind)
    renamed(old, new)(manifest)
    with pytest.raises(ValidationError):
        check(manifest)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("autoscalerOptions", "version"), "v3"),
        (("authOptions", "mode"), "on"),
        (("headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
    ],
)
def test_a_value_that_the_operator_does_not_know_is_found(
    place: tuple[str, str], value: object
) -> None:
    manifest = of_kind("cluster", "RayCluster")
    manifest["spec"][place[0]][place[1]] = value
    with pytest.raises(ValidationError):
        check(manifest)


def test_a_suspended_job_must_end_its_cluster() -> None:
    manifest = of_kind("nightly", "RayJob")
    del manifest["spec"]["shutdownAfterJobFinishes"]
    with pytest.raises(ValidationError):
        check(manifest)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_renders_the_same(folder: str) -> None:
    words = ["kubectl", "kustomize", str(FOLDER / folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    def by_name(objects: list[Manifest]) -> dict[str, Manifest]:
        return {f"{one['kind']} {one['metadata']['name']}": one for one in objects}

    theirs = by_name(list(yaml.safe_load_all(done.stdout)))
    assert theirs == by_name(manifests(folder))


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_folder_that_the_docs_tell_to_write(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    found = re.search(r"^```yaml\n(resources: \[\.\./branchwise/.*?)^```", page, re.M | re.S)
    assert found
    (tmp_path / "branchwise").symlink_to(ROOT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(found[1])
    words = ["kubectl", "kustomize", str(tmp_path / "mine")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (job,) = yaml.safe_load_all(done.stdout)
    check(job)
    images = re.findall(r"image: (.*)", done.stdout)
    assert images == ["REGISTRY/branchwise:0.1.0"] * 3  # the head, and two groups
    assert job["metadata"]["namespace"] == "evaluation"
    assert job["spec"]["entrypoint"] == of_kind("job", "RayJob")["spec"]["entrypoint"]


def test_gpu_machines_are_there_only_while_there_is_work() -> None:
    spec = clusters()["cluster"]
    assert spec["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"policy", "prm"}
    for group in groups.values():
        assert group["minReplicas"] == group["replicas"] == 0
        pod = group["template"]["spec"]
        assert "cloud.google.com/gke-spot" in {one["key"] for one in pod["tolerations"]}
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0


def test_the_token_stays_on_and_the_ray_version_is_the_pinned_one() -> None:
    spec = clusters()["cluster"]
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_a_run_ends_its_cluster_and_its_recipe_is_there() -> None:
    night = of_kind("raycronjob", "RayCronJob")["spec"]["jobTemplate"]
    for job in (of_kind("job", "RayJob")["spec"], of_kind("nightly", "RayJob")["spec"], night):
        assert job["shutdownAfterJobFinishes"]
        words = shlex.split(job["entrypoint"])
        assert words[:4] == ["python", "-m", "jobs", "run"]
        # KubeRay puts the words into a shell of its own.
        assert not re.search(r"[&|;$<>*?`]", job["entrypoint"])
        load_recipe(ROOT / Path(words[4]).relative_to(IN_IMAGE), [])


def test_both_schedules_start_the_same_run() -> None:
    night = of_kind("raycronjob", "RayCronJob")["spec"]
    job, cron = of_kind("nightly", "RayJob")["spec"], of_kind("nightly", "CronJob")["spec"]
    assert night["jobTemplate"]["entrypoint"] == job["entrypoint"]
    assert night["schedule"] == cron["schedule"]
    assert "--date today" in job["entrypoint"]


KUBECTL = """
import json, pathlib, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]

def merged(into, change):
    if not isinstance(change, dict):
        return change
    kept = {key: value for key, value in (into or {}).items() if key not in change}
    return kept | {key: merged((into or {}).get(key), value)
                   for key, value in change.items() if value is not None}

if words[0] == "get" and words[-1] == "json":
    print((here / "pattern.json").read_text())
elif words[0] == "get":
    states = (here / "states").read_text().split(",")
    (here / "states").write_text(",".join(states[1:]))
    sys.exit("connection refused") if states[0] == "away" else print(states[0])
elif words[0] == "patch":
    print(json.dumps(merged(json.load(sys.stdin), json.loads(words[words.index("-p") + 1]))))
elif words[0] == "create":
    (here / "created").write_text(sys.stdin.read())
elif words[0] == "delete":
    (here / "deleted").write_text(words[2])
"""


@pytest.mark.parametrize(
    ("states", "code", "deleted"),
    [
        (" ,Initializing ,away,Running RUNNING,Complete SUCCEEDED", 0, True),
        ("Running RUNNING,Failed FAILED", 1, False),
        ("Running RUNNING,Complete STOPPED", 1, False),
        ("Running RUNNING,", 1, False),
    ],
)
def test_the_cron_job_starts_a_copy_and_tells_how_it_ended(
    tmp_path: Path, states: str, code: int, deleted: bool
) -> None:
    pattern = of_kind("nightly", "RayJob")
    pattern["metadata"] |= {"uid": "1", "resourceVersion": "2", "namespace": "evaluation"}
    pattern["status"] = {"jobDeploymentStatus": "Suspended"}
    (tmp_path / "pattern.json").write_text(json.dumps(pattern))
    (tmp_path / "states").write_text(states)
    for name, text in (("kubectl", f"#!{sys.executable}\n{KUBECTL}"), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    pod = of_kind("nightly", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    words = container["command"] + container["args"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(words, env=environment).returncode == code
    copied = json.loads((tmp_path / "created").read_text())
    assert copied["metadata"].keys() == {"name", "namespace"}
    assert copied["metadata"]["name"] != pattern["metadata"]["name"]
    assert copied["spec"] == pattern["spec"] | {"suspend": False}
    assert "status" not in copied
    check(copied)
    assert (tmp_path / "deleted").exists() == deleted


def applications() -> list[dict[str, Any]]:
    from ray.serve.schema import ServeDeploySchema

    text = of_kind("service", "RayService")["spec"]["serveConfigV2"]
    read = ServeDeploySchema.model_validate(yaml.safe_load(text))
    return [one.model_dump() for one in read.applications]


def test_serve_takes_the_served_models() -> None:
    for application in applications():
        assert application["import_path"] == f"{build.__module__}:{build.__name__}"
        made = build(application["args"])._bound_deployment
        role, spec = application["args"]["role"], application["args"]["spec"]
        assert made.name == {"policy": "PolicyReplica", "prm": "PRMReplica"}[role]
        assert made.num_replicas == spec["replicas"]
        assert made.ray_actor_options["num_gpus"] == spec["gpus_per_replica"]
        assert made.init_args == (ModelSpec(**spec),)


def test_served_models_are_no_runs_deployments_and_answer_as_quickly() -> None:
    # A run deploys, and deletes, applications that are named after its roles.
    assert {one["name"] for one in applications()}.isdisjoint({"policy", "prm"})
    assert all(one["runtime_env"]["env_vars"] == SERVE_SETTINGS for one in applications())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"role": "judge", "spec": {}}, "role, which is one of"),
        ({"role": "prm"}, "args of a served model are"),
        ({"role": "prm", "spec": {"nme": "x"}}, "has no nme"),
        ({"role": "prm", "spec": {"name": "x"}}, "model: Field required"),
        ({"role": "prm", "spec": 3}, "should be a dictionary"),
    ],
)
def test_a_served_model_that_is_said_wrong_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        build(args)
