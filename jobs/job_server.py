"""The job server of a Ray cluster, over HTTP: found, asked, and its refusals in one line.

Invariant: whatever answers at an address, and whatever it answers, a reader is told in one line
what to change.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connect import SET_TOKEN
from search.errors import ClusterError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

API_ADDRESS, CLUSTER_ADDRESS = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"
AUTH_MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT_TOKEN = "~/.ray/auth_token"
ANSWER_TIMEOUT_S = 15.0
EXAMPLE = "http://HOST:8265"
_UNKNOWN_TOKEN, _WRONG_TOKEN = 401, 403


@dataclass(slots=True)
class JobServer:
    """A job server that answered, speaks Ray's version of this process, and took its token."""

    address: str
    _token: "_Token"
    client: "JobSubmissionClient" = field(init=False)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What goes wrong inside, as one line; raises ClusterError."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(_token_refused(self.address, self._token)) from error
        except requests.exceptions.RequestException as error:
            line = f"the job server at {self.address} has stopped answering: {one_line(error)}"
            raise ClusterError(line) from error
        except (RuntimeError, ValueError) as error:
            line = f"the job server at {self.address} refuses: {_last_error(error)}"
            raise ClusterError(line) from error


def job_server(given: str | None) -> JobServer:
    """Connects to the job server at an address, or where the environment says; ClusterError."""
    address, token = find_address(given), _token()
    _check(address, token)
    # Ray would prefer the environment's address to the one that is given.
    os.environ[API_ADDRESS] = address
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    server = JobServer(address, token)
    with server.asked():
        server.client = JobSubmissionClient(address, headers=token.headers)
    return server


def find_address(given: str | None) -> str:
    """The address to use, as `http://HOST:PORT`; raises ClusterError if there is none."""
    sources = (
        ("--address", given),
        (API_ADDRESS, os.environ.get(API_ADDRESS)),
        (CLUSTER_ADDRESS, os.environ.get(CLUSTER_ADDRESS)),
    )
    found = next(((source, value) for source, value in sources if value), None)
    if found is None:
        raise ClusterError(
            f"no cluster is named: give --address {EXAMPLE}, or set {API_ADDRESS} to that"
        )
    source, value = found
    if value == "auto" or ("://" in value and not value.startswith(("http://", "https://"))):
        raise ClusterError(
            f"{source}={value} is no address of a job server: give that of the cluster's "
            f"dashboard, {EXAMPLE}"
        )
    return (value if "://" in value else f"http://{value}").rstrip("/")


@dataclass(frozen=True, slots=True)
class _Token:
    """A token and where it was found; both empty if there is none."""

    value: str = ""
    source: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.value}"} if self.value else {}


def _token() -> _Token:
    """Where Ray looks for it, and also if RAY_AUTH_MODE is not set; raises ClusterError."""
    if os.environ.get(AUTH_MODE, "token").lower() != "token":
        return _Token()
    if value := os.environ.get(TOKEN, "").strip():
        return _Token(value, TOKEN)
    named = os.environ.get(TOKEN_PATH)
    path = Path(named or DEFAULT_TOKEN).expanduser()
    try:
        return _Token(path.read_text().strip(), named or DEFAULT_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        if named is None and isinstance(error, FileNotFoundError):
            return _Token()
        raise ClusterError(
            f"{path} cannot be read: {TOKEN_PATH} names a file with the cluster's token"
        ) from None


def _check(address: str, token: _Token) -> None:
    """Raises ClusterError unless a Ray of this version answers and takes the token."""
    import requests

    try:
        answer = requests.get(
            f"{address}/api/version",
            headers=token.headers,
            timeout=ANSWER_TIMEOUT_S,
            allow_redirects=False,
        )
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise ClusterError(_silent(address, error)) from error
    except (requests.exceptions.RequestException, ValueError) as error:
        raise ClusterError(_something_else(address)) from error
    if answer.status_code in (_UNKNOWN_TOKEN, _WRONG_TOKEN):
        raise ClusterError(_token_refused(address, token))
    _check_version(address, _version_in(answer))


def _silent(address: str, error: Exception) -> str:
    if "Connection aborted" in str(error) or "BadStatusLine" in str(error):
        return _something_else(address)
    return (
        f"no cluster answers at {address}: start it, forward its dashboard's port, or give "
        f"another --address ({EXAMPLE})"
    )


def _something_else(address: str) -> str:
    return (
        f"what answers at {address} is not the job server of a Ray cluster: give the address of "
        f"its dashboard, {EXAMPLE}"
    )


def _token_refused(address: str, token: _Token) -> str:
    if token.value:
        return f"the cluster at {address} does not accept the token in {token.source}: {SET_TOKEN}"
    mode = os.environ.get(AUTH_MODE)
    off = f", and {AUTH_MODE}={mode} sends none" if mode and mode != "token" else ""
    return f"the cluster at {address} asks for a token{off}: {SET_TOKEN}"


def _version_in(answer: Any) -> str | None:
    try:
        return str(answer.json()["ray_version"]) if answer.ok else None
    except (ValueError, KeyError, TypeError):
        return None


def _check_version(address: str, theirs: str | None) -> None:
    import ray

    if theirs is None:
        raise ClusterError(_something_else(address))
    if _minor(theirs) != _minor(ray.__version__):
        raise ClusterError(
            f"the cluster at {address} runs Ray {theirs} and Branchwise needs "
            f"{_minor(ray.__version__)}: use an image with ray=={_minor(ray.__version__)}.*"
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _last_error(error: Exception) -> str:
    """What a server's traceback ends with."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return one_line((named or lines or [type(error).__name__])[-1]).rstrip(".\"'")
