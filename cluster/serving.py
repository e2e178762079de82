"""A policy or a PRM as a Serve application that stands by itself, for a Serve configuration file.

A run starts its own replicas and takes them away; this is for models that stay loaded, as a
RayService of KubeRay keeps them (cluster/kuberay/service), or `serve run`. They are the same
deployments as a run's and answer handles, not HTTP. Invariant: what a configuration says wrong is
refused when it is read, before anything loads.
"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from actors.spec import ModelSpec
from cluster.deploy import deployment
from search.errors import ClusterError

if TYPE_CHECKING:
    from ray.serve import Application

ROLES = ("policy", "prm")


def build(args: dict[str, Any]) -> "Application":
    """The application of `{role: policy or prm, spec: fields of ModelSpec}`.

    Serve calls this with the `args` of the configuration. Raises: ClusterError.
    """
    if set(args) != {"role", "spec"} or args["role"] not in ROLES:
        raise ClusterError(f"args of a served model are spec and role, which is one of {ROLES}")
    spec = _spec(args["spec"])
    return deployment(args["role"], spec).bind(spec)  # type: ignore[no-any-return]


def _spec(values: Any) -> ModelSpec:
    known = {field.name for field in fields(ModelSpec)}
    unknown = set(values) - known if isinstance(values, dict) else set()
    if unknown:
        raise ClusterError(f"spec of a served model has no {', '.join(sorted(unknown))}: take out")
    try:
        return TypeAdapter(ModelSpec).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        words = ("spec of a served model", *map(str, first["loc"]), first["msg"])
        raise ClusterError(": ".join(words)) from error
