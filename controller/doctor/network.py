"""Ports and hosts."""

import os
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from controller.config import Config
from controller.doctor.findings import Finding, Voice
from controller.metrics.endpoint import Endpoint
from speech.errors import InputError

NETWORK = Voice("network")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

Resolve = Callable[[str], object]
"""Looks a host's address up. Raises OSError."""


def check_metrics(config: Config) -> Iterator[Finding]:
    """Whether metrics can be served where they are to be."""
    host, port = config.metrics.host, config.metrics.port
    try:
        Endpoint(host, port).probe()
    except InputError as error:
        yield NETWORK.error(str(error), "set metrics.host and metrics.port to an address that is free here")
        return
    where = f"{host}, port {port}" if port else f"{host}, any free port"
    yield NETWORK.fine(f"metrics can be served on {where}")
    if host not in LOOPBACK:
        yield NETWORK.warning(
            f"metrics.host: {host} can be reached from other machines, and there is no password",
            "keep port and network behind a firewall (docs/security.md), or set metrics.host=127.0.0.1",
        )


def check_hosts(config: Config, resolve: Resolve | None = None) -> Iterator[Finding]:
    """Whether the hosts that the configuration names have addresses."""
    resolve, good = resolve or (lambda host: socket.getaddrinfo(host, None)), []
    proxy = any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ)
    for key, host in hosts(config):
        try:
            resolve(host)
        except OSError as error:
            text = f"{key}: no address is known for {host}: {error}"
            if proxy:  # which may know it
                yield NETWORK.warning(text, "see whether the proxy of the environment leads there")
            else:
                yield NETWORK.error(text, f"mend {key}, or the name server of this machine")
        else:
            good.append(host)
    if good:
        yield NETWORK.fine(f"addresses are known for {', '.join(dict.fromkeys(good))}")


def hosts(config: Config) -> Iterator[tuple[str, str]]:
    """(key, host) of every host that a rater asks; addresses of this machine are left out."""
    for rater in config.reward.raters:
        for name, value in rater.arguments.items():
            if isinstance(value, str) and value.startswith(("http://", "https://")):
                try:
                    host = urlsplit(value).hostname
                except ValueError:
                    continue  # the rater's own check says so
                if host and host not in LOOPBACK:
                    yield f"reward.raters.{rater.name}.arguments.{name}", host
