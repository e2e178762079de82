"""The name a replica goes by in result tables."""


def replica_name() -> str:
    """Serve's id of this replica, or an empty string outside of Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:
        return ""
