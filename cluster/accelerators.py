"""Which GPUs a cluster has, as Ray names them."""

_RESOURCE = "accelerator_type:"


def gpu_names() -> frozenset[str]:
    """Types of the GPUs of all machines that live, such as H100; empty if Ray does not say."""
    import ray
    from ray.exceptions import RayError

    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except RayError:
        return frozenset()
    names = (name for resources in alive if resources.get("GPU") for name in resources)
    return frozenset(name.removeprefix(_RESOURCE) for name in names if name.startswith(_RESOURCE))
