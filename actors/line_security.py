"""Who may call a replica: whoever its address was told to, and with TLS only the cluster's own.

What travels is pickled, so whoever may call a replica may run code in it, as with Ray itself. Its
address carries a secret that Serve hands on, and where Ray's own connections use TLS
(`RAY_USE_TLS`), so do these, with the same certificates on both sides.
"""

import os
import ssl
from functools import cache


@cache
def client_tls() -> ssl.SSLContext | None:
    """For the side that calls; None without TLS."""
    return _context(ssl.Purpose.SERVER_AUTH)


@cache
def server_tls() -> ssl.SSLContext | None:
    """For the side that is called, which asks for the caller's certificate; None without TLS."""
    return _context(ssl.Purpose.CLIENT_AUTH)


def _context(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.create_default_context(purpose, cafile=os.environ["RAY_TLS_CA_CERT"])
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    # Machines of a cluster come and go; what counts is that their certificate is the cluster's.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context
