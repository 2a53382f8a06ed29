"""Fetching a picture from the web when its address comes from a document that nobody vouches for.

Only ``http`` and ``https`` are fetched, and only from hosts whose every address is public. The connection goes to the
address that was checked, so a name that resolves differently a moment later gains nothing. Redirects are checked like
the first address. Bytes and seconds are bounded. Proxies from the environment are not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import httpx

from mmrh_retriever.errors import PageError

MAX_REDIRECTS = 4
"""Redirects that are followed from one address."""
CLOUD_SERVICE_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public addresses that lead to a cloud's own control services (Azure's WireServer)."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {
    "Accept": "image/*, application/pdf",
    "Accept-Encoding": "identity",
}  # nothing to unpack


def fetch(url: str, *, max_bytes: int, timeout: float) -> bytes:
    """The body behind a public ``http`` or ``https`` address.

    Args:
        url: the address.
        max_bytes: longer answers are refused, before anything is read where they give their length.
        timeout: seconds for the whole fetch, redirects included.

    Raises:
        PageError: another scheme, an address that is not public, too many bytes, too slow, or no such thing.
    """
    with ThreadPoolExecutor(1) as worker:  # the caller's own thread may run an event loop already
        return worker.submit(asyncio.run, _fetch_in_time(url, max_bytes, timeout)).result()


def checked_address(url: httpx.URL) -> str:
    """Look up the host of a URL, and refuse it unless every address of the host is public.

    Raises:
        PageError: not http(s), credentials in it, an unknown host, or a host that is not public.
    """
    if url.userinfo:
        raise PageError(f"The address at {url.host} holds credentials, which are not sent. Remove them.")
    port = url.port or (443 if url.scheme == "https" else 80)
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host or port > 65535:
        raise PageError(
            f"{str(url)!r} is not fetched. Expected http:// or https:// with a host; files on disk are given by their "
            "path.",
            source=str(url),
        )
    try:
        found = socket.getaddrinfo(url.raw_host.decode("ascii"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PageError(f"{url}: the host {url.host!r} was not found ({error}).", source=str(url)) from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise PageError(
                f"{url} is not fetched: {url.host} is at {address}, which is not a public address. Fetch the page "
                "yourself and give its bytes or path.",
                source=str(url),
            )
    return addresses[0]


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


class _PinnedTransport(httpx.AsyncHTTPTransport):
    """Connects to the address that was checked, whatever the name resolves to now.

    The request keeps its ``Host`` header, and TLS verifies the certificate for the host's name.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=checked_address(request.url)),
            headers=request.headers,
            extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
        )
        return await super().handle_async_request(pinned)


async def _fetch_in_time(url: str, max_bytes: int, timeout: float) -> bytes:
    """The body. One limit bounds everything, so that an answer can't drip in for ever."""
    try:
        return await asyncio.wait_for(_follow(url, max_bytes), timeout)
    except asyncio.TimeoutError as error:
        raise PageError(f"{url} takes too long. Raise url_timeout, or fetch it yourself.", source=url) from error
    except httpx.InvalidURL as error:
        raise PageError(f"{url!r} is not a web address ({error}). Expected http:// or https://.", source=url) from error
    except (httpx.HTTPError, OSError) as error:
        raise PageError(
            f"{url} can't be fetched ({type(error).__name__}: {error}). Check the address and the network.", source=url
        ) from error


async def _follow(url: str, max_bytes: int) -> bytes:
    here, context = httpx.URL(url.strip()), ssl.create_default_context()
    for _ in range(MAX_REDIRECTS + 1):
        # One client per request: a connection that TLS verified for one name never serves another name.
        transport = _PinnedTransport(verify=context, trust_env=False)
        client = httpx.AsyncClient(transport=transport, headers=_HEADERS, timeout=None, trust_env=False)  # noqa: S113
        async with client, client.stream("GET", here) as answer:
            if answer.next_request is None:
                return await _body(answer, url, max_bytes)
            there = answer.next_request.url
        if here.scheme == "https" and there.scheme == "http":
            raise PageError(f"{here} redirects from https to {there}. Give the final address.", source=url)
        here = there
    raise PageError(f"{url} redirects more than {MAX_REDIRECTS} times. Give the final address.", source=url)


async def _body(answer: httpx.Response, url: str, max_bytes: int) -> bytes:
    if answer.status_code != 200:
        raise PageError(f"{url} answered {answer.status_code} {answer.reason_phrase}. Expected 200.", source=url)
    length = int(answer.headers.get("Content-Length", 0))
    if length > max_bytes:
        raise PageError(f"{url} has {length:,} bytes; max_bytes allows {max_bytes:,}. Raise it.", source=url)
    body = bytearray()
    try:
        async for part in answer.aiter_raw():
            body += part
            if len(body) > max_bytes:
                raise PageError(f"{url} has more than the {max_bytes:,} bytes of max_bytes. Raise it.", source=url)
    except httpx.RemoteProtocolError as error:
        raise PageError(f"{url} broke off after {len(body):,} bytes ({error}). Try again.", source=url) from error
    return bytes(body)
