"""URIs of stores: how they are opened, how one goes into a folder, and what of them may be shown.

Invariant: no password, key or token that stands in a URI is in what is shown, written or raised.
"""

import re

from pyarrow import fs

# A store that does not answer is given up by one request after this long, and asked again.
_S3_PATIENCE = {"connect_timeout": 5.0, "request_timeout": 10.0}
# Small files go in one request, and an error comes when they are closed.
_S3_WRITING = {"allow_delayed_open": True}
_NO_BUCKET = re.compile("NO_SUCH_BUCKET|ContainerNotFound")
_REFUSED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|FORBIDDEN|EXPIRED|"
    "PERMISSION_DENIED|UNAUTHENTICATED|AuthenticationFailed|AuthorizationFailure"
)
_SECRET = re.compile(r"secret|password|token|signature|credential|\bkey\b", re.IGNORECASE)


def is_uri(where: str) -> bool:
    """Whether it names a store, and not a path on this machine."""
    return "://" in where


def opened(uri: str) -> tuple[fs.FileSystem, str]:
    """The store of a URI and the path in it; raises OSError or ArrowException."""
    files, path = fs.FileSystem.from_uri(uri)
    if files.type_name == "s3":
        # A URI cannot say how patient S3 is to be: its own way to be pickled can.
        make, (settings,) = files.__reduce__()
        files = make(settings | _S3_PATIENCE | _S3_WRITING)
    return files, path.rstrip("/")


def child_of(uri: str, name: str) -> str:
    """What lies in a folder; what a URI says behind `?` stays behind."""
    folder, mark, query = uri.partition("?") if is_uri(uri) else (uri, "", "")
    return f"{folder}/{name}{mark}{query}"


def shown(where: str) -> str:
    """A path or URI as it may be shown: without credentials, and without an end of `/`."""
    if not is_uri(where):
        return where
    scheme, _, rest = where.partition("://")
    place, _, query = rest.partition("?")
    kept = [part for part in query.split("&") if part and not _SECRET.search(part.split("=")[0])]
    return f"{scheme}://{_without_user(place).rstrip('/')}{'?' * bool(kept)}{'&'.join(kept)}"


def without_secrets(text: object, uri: str) -> str:
    """The words of an error about a URI, with what may be shown of it."""
    return " ".join(str(text).replace(uri, shown(uri)).split())


def _without_user(place: str) -> str:
    """A name alone stays, for it may be a container; a password does not, even misspelt."""
    authority, _, path = place.partition("/")
    user, at, _ = authority.rpartition("@")
    if at:
        return place[len(user) + 1 :] if ":" in user else place
    _, colon, port = authority.partition(":")
    return place.rpartition("@")[2] if colon and "@" in path and not port.isdecimal() else place


def is_final(words: str) -> bool:
    """Whether a store will say the same again, however long one waits."""
    return bool(_NO_BUCKET.search(words) or _REFUSED.search(words) or "NOT_FOUND" in words)


def reason(error: object) -> str:
    """What a store says, in one line, with what to do about it where that is known."""
    words = " ".join(str(error).split())
    if _NO_BUCKET.search(words):
        return "there is no such bucket: make it, or change the name"
    if _REFUSED.search(words):
        return f"access is refused: check the credentials and what they may do ({words})"
    return words
