"""The HTTP port, tried before the model is loaded: SGLang binds it when everything else is up."""

import errno
import socket
from typing import Any

from hetero_sglang.errors import HeteroError, ending_the_process


def launching(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE http_server.launch_server, which sgl.Engine does not call: ends the process for a port it cannot have."""
    if server_args.kv_policy == "full":
        return
    with ending_the_process():
        check_port(server_args.host, server_args.port)


def check_port(host: str | None, port: int) -> None:
    """Raises HeteroError unless a server could listen on `port` (0: any) of every address of `host`, as asyncio does
    it: SO_REUSEADDR, so that connections of a server that has ended (TIME_WAIT) do not count."""
    if not 0 <= port <= 65535:
        raise HeteroError(f"--port {port} is not within [0, 65535]; choose one that is.")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host's name
        raise HeteroError(f"--host {host} has no address ({_reason(error)}); give one of this machine's.") from None
    bound, refused = 0, None
    for family, kind, protocol, _, address in found:
        try:
            tried = socket.socket(family, kind, protocol)
        except OSError:  # a family this machine does not speak
            continue
        with tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                tried.bind(address)
                bound += 1
            except OSError as error:
                refused = error
                if error.errno != errno.EADDRNOTAVAIL:  # localhost may have an address that is not there
                    break
    if refused is not None and (not bound or refused.errno != errno.EADDRNOTAVAIL):
        raise HeteroError(
            f"nothing can listen on --host {host} --port {port} ({_reason(refused)}); choose another, or stop what "
            f"holds it."
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
