"""Fetching a picture from the web when its address comes from a document that nobody vouches for.

Only ``http`` and ``https`` are fetched, and only from hosts whose every address is public. The connection goes to the
address that was checked, so a name that resolves differently a moment later gains nothing. Redirects are checked like
the first address. Bytes and seconds are bounded. Proxies from the environment are not used.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from typing import Any

import httpcore
import httpx

from mmrh_retriever.errors import PageError

MAX_REDIRECTS = 4
"""Redirects that are followed from one address."""
CLOSED_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
            "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
            "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
            "240.0.0.0/4",
            "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
        ),
    )
)  # fmt: skip
"""Networks that no picture is on.

All of IANA's registries of special-purpose addresses, multicast, reserved addresses, and the address at which Azure
has control services. Of IPv6 the part of global unicast: nothing outside ``2000::/3`` is public.
"""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))  # mapped, and NAT64
_HEADERS = [("Accept", "image/*, application/pdf"), ("Accept-Encoding", "identity")]
_REDIRECTS = (301, 302, 303, 307, 308)


def fetch(url: str, *, max_bytes: int, timeout: float) -> bytes:
    """The body behind a public ``http`` or ``https`` address; ``timeout`` is in seconds, redirects included.

    Answers of more than ``max_bytes`` are refused, before anything is read where they give their length.
    """
    network = _CheckedNetwork(time.monotonic() + timeout)
    try:
        with httpcore.ConnectionPool(ssl_context=ssl.create_default_context(), network_backend=network) as pool:
            here = _parsed(url)
            for _ in range(MAX_REDIRECTS + 1):
                with pool.stream("GET", str(here), headers=_HEADERS) as answer:
                    headers = httpx.Headers(answer.headers)
                    if answer.status not in _REDIRECTS:
                        return _body(answer, headers, url, max_bytes)
                there = _parsed(headers.get("Location", ""), here)
                if here.scheme == "https" and there.scheme == "http":
                    raise PageError(f"{here} redirects from https to {there}. Give the final address.", source=url)
                here = there
    except httpcore.TimeoutException as error:
        raise PageError(f"{url} takes too long. Raise url_timeout, or fetch it yourself.", source=url) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        problem = f"{url} can't be fetched ({type(error).__name__}: {error}). Check the address and the network."
        raise PageError(problem, source=url) from error
    raise PageError(f"{url} redirects more than {MAX_REDIRECTS} times. Give the final address.", source=url)


def checked_address(host: str, port: int) -> str:
    """The first address of a host; a :class:`PageError` unless it is found and all its addresses are public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PageError(f"The host {host!r} was not found ({error}). Check the address.", source=host) from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            problem = f"it is at {address}, which is not a public address. Fetch it yourself and give bytes or a path."
            raise PageError(f"{host} is not fetched from: {problem}", source=host)
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, and so is the IPv4 address in it, if there is one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedding = any(ip in network for network in _EMBEDDING)
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if embedding else ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False
    return not any(ip in network for network in CLOSED_NETWORKS)


def _parsed(address: str, base: httpx.URL | None = None) -> httpx.URL:
    """An address that may be fetched; relative to ``base`` if there is one."""
    try:
        url = httpx.URL(address.strip()) if base is None else base.join(address.strip())
        host = url.host
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: lone surrogates, and what is no name in Punycode
        raise PageError(f"{address!r} is not a web address ({error}). Expected http:// or https://.") from error
    if url.userinfo:
        raise PageError(f"The address at {host} holds credentials, which are not sent. Remove them.")
    if url.scheme not in ("http", "https") or not host or "%" in host or (url.port or 0) > 65535:
        expected = "Expected http:// or https:// with a host; files on disk are given by their path."
        raise PageError(f"{address!r} is not fetched. {expected}", source=address)
    return url


def _body(answer: httpcore.Response, headers: httpx.Headers, url: str, max_bytes: int) -> bytes:
    if answer.status != 200:
        raise PageError(f"{url} answered {answer.status}. Expected status 200.", source=url)
    length = int(headers.get("Content-Length", 0))
    if length > max_bytes:
        raise PageError(f"{url} has {length:,} bytes; max_bytes allows {max_bytes:,}. Raise it.", source=url)
    body = bytearray()
    try:
        for part in answer.iter_stream():
            body += part
            if len(body) > max_bytes:
                raise PageError(f"{url} has more than the {max_bytes:,} bytes of max_bytes. Raise it.", source=url)
    except httpcore.RemoteProtocolError as error:
        raise PageError(f"{url} broke off after {len(body):,} bytes ({error}). Try again.", source=url) from error
    return bytes(body)


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to the address that was checked, whatever the name resolves to now. TLS still verifies the name.

    ``end`` (on the monotonic clock) bounds everything together, so that an answer can't drip in for ever.
    """

    def __init__(self, end: float) -> None:
        self.end = end

    def connect_tcp(self, host: str, port: int, *_: Any, **options: Any) -> httpcore.NetworkStream:
        address = checked_address(host, port)
        stream = httpcore.SyncBackend().connect_tcp(address, port, **{**options, "timeout": _left(self.end)})
        return _TimedStream(stream, self.end)


class _TimedStream(httpcore.NetworkStream):
    """A connection whose reads and writes all end at one time."""

    def __init__(self, stream: httpcore.NetworkStream, end: float) -> None:
        self.stream = stream
        self.end = end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _left(self.end))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _left(self.end))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self.stream.start_tls(ssl_context, server_hostname, _left(self.end)), self.end)

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time is over")
    return left
