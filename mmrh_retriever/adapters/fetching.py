"""Fetching a picture from the web when its address comes from a document that nobody vouches for.

Only ``http`` and ``https``; only hosts whose every address is public; the connection goes to the address that
was checked (a name that resolves differently a moment later gains nothing); redirects are checked like the first
address; bytes and seconds are bounded. Proxies from the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from mmrh_retriever.errors import PageError

MAX_REDIRECTS = 4
"""Redirects that are followed from one address."""
CLOUD_SERVICE_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public addresses that lead to a cloud's own control services (Azure's WireServer)."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes: the parts of a checked URL, and the public address that its host had."""

    secure: bool
    host: str
    port: int
    resource: str
    address: str


def fetch(url: str, *, max_bytes: int, timeout: float) -> bytes:
    """The body behind a public ``http`` or ``https`` address.

    Args:
        url: the address.
        max_bytes: longer answers are refused, if they say their length before anything is read.
        timeout: seconds for all of it, redirects included.

    Raises:
        PageError: another scheme, an address that is not public, too many bytes, too slow, or no such thing.
    """
    deadline = time.monotonic() + timeout
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        target = check_url(here)
        found = _request(target, url=here, max_bytes=max_bytes, deadline=deadline)
        if isinstance(found, bytes):
            return found
        there = urljoin(here, found)
        if target.secure and urlsplit(there).scheme == "http":
            raise PageError(f"{here} redirects from https to {there}. Give the final address.", source=url)
        here = there
    raise PageError(f"{url} redirects more than {MAX_REDIRECTS} times. Give the final address.", source=url)


def check_url(url: str) -> Target:
    """Take a URL apart, look its host up, and refuse it unless every address of the host is public.

    Raises:
        PageError: not http(s), credentials in it, an unknown host, or a host that is not public.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise PageError(f"{url!r} is not a web address ({error}). Expected http:// or https://.", source=url) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PageError(
            f"{url!r} is not fetched: its scheme is {parts.scheme or 'missing'!r}. Expected http:// or https://; files "
            "on disk are given by their path.",
            source=url,
        )
    if parts.username is not None or parts.password is not None:
        raise PageError(f"The address at {parts.hostname} holds credentials, which are not sent. Remove them.")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    try:
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode("ascii")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PageError(f"{url}: the host {parts.hostname!r} was not found ({error}).", source=url) from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise PageError(
                f"{url} is not fetched: {parts.hostname} is at {address}, which is not a public address. Fetch the "
                "page yourself and give its bytes or path.",
                source=url,
            )
    return Target(secure, host, port, _resource(parts), addresses[0])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet: not private, loopback, link-local, reserved ..."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo is not None or ip.is_site_local:
            return False
    closed = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    return ip.is_global and not closed and not ip.is_unspecified and ip not in CLOUD_SERVICE_ADDRESSES


def _resource(parts: SplitResult) -> str:
    safe = "/%:=&?~+!$,;'@()*"
    return quote(parts.path or "/", safe=safe) + (f"?{quote(parts.query, safe=safe)}" if parts.query else "")


def _request(target: Target, *, url: str, max_bytes: int, deadline: float) -> bytes | str:
    """The answer's body, or the address that it redirects to."""
    kind = _PinnedHTTPS if target.secure else _PinnedHTTP
    connection = kind(target, timeout=_left(deadline, url))
    try:
        connection.connect()
        # A timeout bounds each read; this bounds them all, so that an answer can't drip in for ever.
        guard = threading.Timer(_left(deadline, url), _hang_up, [connection.sock])
        guard.daemon = True
        guard.start()
        try:
            connection.request("GET", target.resource, headers={"Accept": "image/*, application/pdf"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                return answer.headers.get("Location") or url
            if answer.status != 200:
                raise PageError(f"{url} answered {answer.status} {answer.reason}. Expected 200.", source=url)
            return _read(answer, url=url, max_bytes=max_bytes, deadline=deadline)
        finally:
            guard.cancel()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, PageError):
            raise
        _left(deadline, url)
        raise PageError(
            f"{url} can't be fetched ({type(error).__name__}: {error}). Check the address and the network.", source=url
        ) from error
    finally:
        connection.close()


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be closed already
        connected.shutdown(socket.SHUT_RDWR)


def _read(answer: http.client.HTTPResponse, *, url: str, max_bytes: int, deadline: float) -> bytes:
    said = answer.headers.get("Content-Length", "")
    if said.isdigit() and int(said) > max_bytes:
        raise PageError(f"{url} has {int(said):,} bytes; max_bytes allows {max_bytes:,}. Raise it.", source=url)
    body = bytearray()
    while part := answer.read1(_CHUNK):
        body += part
        if len(body) > max_bytes:
            raise PageError(f"{url} has more than the {max_bytes:,} bytes that max_bytes allows. Raise it.", source=url)
    _left(deadline, url)
    if said.isdigit() and len(body) < int(said):
        raise PageError(f"{url} broke off after {len(body):,} of {said} bytes. Try again.", source=url)
    return bytes(body)


def _left(deadline: float, url: str) -> float:
    """The seconds left, or an error."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise PageError(f"{url} takes too long. Raise url_timeout, or fetch it yourself.", source=url)
    return left


class _PinnedHTTP(http.client.HTTPConnection):
    """A connection to the address that was checked, whatever the name resolves to now."""

    def __init__(self, target: Target, *, timeout: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout)
        self._target = target

    def connect(self) -> None:
        self.sock = socket.create_connection((self._target.address, self._target.port), self.timeout)


class _PinnedHTTPS(_PinnedHTTP):
    """The same behind TLS; the certificate must be the name's."""

    default_port = 443

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._target.host)
