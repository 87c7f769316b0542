"""Where an endpoint listens: how the address is written, and whether it can be listened at."""

import errno
import socket

from llm4msr.errors import ConfigError

_HOSTS = "127.0.0.1 is this machine alone, 0.0.0.0 all its IPv4 addresses, :: all of IPv6 too"


def url(host: str, port: int) -> str:
    """The address as a client writes it; an IPv6 host stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind_error(host: str, port: int) -> str:
    """What keeps an endpoint from listening at the port, such as another program that does; empty if nothing does.

    Raises:
        ConfigError: the host is no address of this machine.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"serve.host: '{host}' cannot be resolved ({reason}); {_HOSTS}") from None
    family, kind, protocol, _, place = min(places, key=lambda p: p[0] != socket.AF_INET)  # as Ray Serve chooses
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise ConfigError(
                f"serve.host: '{host}' is no address of this machine ({error.strerror}); {_HOSTS}"
            ) from None
        return str(error.strerror)
    return ""
