"""Where an endpoint listens: whether it can, and how the place is written."""

import errno
import ipaddress
import socket

from llm4msr.errors import ConfigError


def url(host: str, port: int) -> str:
    """The address as a client writes it; an IPv6 host stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def why_taken(host: str, port: int) -> str:
    """What stands against listening there, such as another program that does; empty where nothing does.

    Raises:
        ConfigError: the host is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(f"serve.host: '{host}' cannot be resolved ({told}); {_HOSTS}") from None
    family, kind, protocol, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)  # as Ray Serve chooses
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


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_HOSTS = "127.0.0.1 is this machine alone, 0.0.0.0 all its IPv4 addresses, :: all of IPv6 too"
