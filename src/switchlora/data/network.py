"""Is the hub there at all? Its client retries a name that does not resolve for 50 seconds; a user without
network should read one line at once.
"""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

DEFAULT_ENDPOINT = "https://huggingface.co"


def hub_resolves() -> bool:
    """False when the hub's host name certainly leads nowhere; behind a proxy we cannot tell, and say True."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT))
    if endpoint.scheme in getproxies() or "all" in getproxies():
        return True
    try:
        socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
    except OSError:
        return False
    return True
