"""Pictures from the web: what is never fetched, and what bounds a fetch."""

from __future__ import annotations

import base64
import http.server
import ipaddress
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpcore
import pytest

from mmrh_retriever.adapters import fetching
from mmrh_retriever.adapters.fetching import checked_address, fetch, is_public
from mmrh_retriever.errors import PageError
from mmrh_retriever.page_sources import PageClues, PageSource
from tests.factories import page_image
from tests.ranking_stub import png

# Addresses


def test_urls_are_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("no look-up without permission"))
    with pytest.raises(PageError, match="allow_urls=True"):
        PageSource().page(PageClues(image_url="https://example.org/a.png"))
    assert PageSource().page(PageClues(image_url="https://example.org/a.png", text="words")).text == "words"


def test_data_uri_needs_no_network() -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    assert PageSource().page(PageClues(image_url=uri)).pixels().size == (96, 128)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.1",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:0:5ef5:79fd::1", "2001:db8::1", "192.0.0.1", "192.0.0.9", "192.0.2.7", "192.88.99.1",
        "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.51.100.1", "203.0.113.1", "240.0.0.1", "::ffff:192.0.0.1",
        "64:ff9b::c058:6301", "64:ff9b:1::1", "2002:c000:1::", "2002:c058:6301::1", "::7f00:1", "::ffff:0:7f00:1",
        "100::1", "100:0:0:1::1", "2001:2::1", "2001:20::1", "2001:1ff::1", "2620:4f:8000::1", "3fff::1", "5f00::1",
        "4000::1", "1fff::1",
    ],
)  # fmt: skip
def test_closed_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34", "192.0.1.1", "192.88.98.1", "168.63.129.17", "2606:2800:220:1::1", "2001:200::1",
        "2400:cb00::1",
        "::ffff:93.184.216.34", "64:ff9b::5db8:d822", "2002:5db8:d822::1",
    ],
)  # fmt: skip
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_what_python_calls_closed_is_closed() -> None:
    rng = random.Random(11)
    for _ in range(20_000):
        six = rng.random() < 0.5
        bits = rng.getrandbits(128 if six else 32)
        if six and rng.random() < 0.7:  # near where networks begin
            bits = rng.choice([0x2001, 0x2002, 0x64, 0x3FFF, 0xFE80, 0]) << 112 | bits >> rng.choice([16, 64, 96])
        ip = (ipaddress.IPv6Address if six else ipaddress.IPv4Address)(bits)
        embedded = six and (ip.sixtofour or ip.ipv4_mapped)
        assert ip.is_global or embedded or not is_public(str(ip)), ip


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/a", "gopher://x/", "//example.org/a", "http://", "http:///a",
        "http://[", "http://host:99999/", "http://host:port/", "http://ho st/", "http://host\n/",
    ],
)  # fmt: skip
def test_other_schemes_and_malformed_addresses(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("nothing to look up"))
    with pytest.raises(PageError, match=r"not fetched|not a web address"):
        fetch(url, max_bytes=10, timeout=1)


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "http://[::1]/a", "http://2130706433/a", "http://0x7f.1/a"])
def test_addresses_of_this_machine(url: str) -> None:
    with pytest.raises(PageError, match="not a public address"):
        fetch(url, max_bytes=10, timeout=1)


def test_one_closed_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.0.0.5", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(PageError, match=r"10\.0\.0\.5"):
        checked_address("two-faced.example", 80)


def test_credentials_are_refused_and_not_repeated() -> None:
    for scheme in ("http", "ftp"):
        with pytest.raises(PageError, match="credentials") as caught:
            fetch(f"{scheme}://user:hunter2@example.org/", max_bytes=10, timeout=1)
        assert "hunter2" not in str(caught.value)


# Answers


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        if self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            self.drip()
            return
        if self.path == "/drip-headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            self.drip()
            return
        body = {"/a.png": png(), "/host": self.headers["Host"].encode()}.get(self.path, b"x" * 5000)
        self.send_response(404 if self.path == "/none" else 200)
        if self.path != "/without-length":
            self.send_header("Content-Length", str(len(body) * (2 if self.path == "/short" else 1)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Quiet."""


def serve(wrap: Callable[[socket.socket], socket.socket] = lambda plain: plain) -> Iterator[int]:
    """The port of a server on this machine."""
    server = Server(("127.0.0.1", 0), Site)
    server.socket = wrap(server.socket)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test, 127.0.0.1 counts as public and nothing else does; 127.0.0.2 stays closed."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")


@pytest.fixture
def port(public: None) -> Iterator[int]:
    yield from serve()


@pytest.fixture
def site(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def resolve(monkeypatch: pytest.MonkeyPatch, address_of: Callable[[str], str]) -> None:
    """Look names up by a function; numeric addresses stay what they are."""
    numeric = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, **more: Any) -> list[Any]:
        return numeric(host if host[0].isdigit() else address_of(host), port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every host name leads to 127.0.0.1; the names that were looked up."""
    looked_up: list[str] = []
    resolve(monkeypatch, lambda name: looked_up.append(name) or "127.0.0.1")
    return looked_up


def test_fetch_when_allowed(site: str) -> None:
    page = PageSource(allow_urls=True).page(PageClues(image_url=f"{site}/a.png"))
    assert page.pixels().tobytes() == page_image(0).tobytes()
    page = PageSource(allow_urls=True).page(PageClues(image_url=f"{site}/moved?{site}/a.png"))
    assert page.pixels().size == (96, 128)
    page = PageSource(allow_urls=True).page(PageClues(image_url=f" {site}/moved?/a.png "))
    assert page.pixels().size == (96, 128)


def test_the_checked_address_is_the_one_connected_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves differently at its second look-up gains nothing; the server still hears the name."""
    answers = ["127.0.0.1", "127.0.0.2"]
    resolve(monkeypatch, lambda _: answers.pop(0))
    url = f"http://rebinding.example:{port}/host"
    assert fetch(url, max_bytes=1000, timeout=5) == f"rebinding.example:{port}".encode()
    with pytest.raises(PageError, match=r"127\.0\.0\.2, which is not a public address"):
        fetch(url, max_bytes=1000, timeout=5)
    assert answers == []


def test_proxies_of_the_environment_are_not_used(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.2:9")
    assert fetch(f"{site}/a.png", max_bytes=10**6, timeout=5) == png()


def test_redirect_to_a_closed_address_is_refused(site: str) -> None:
    for there in ("http://127.0.0.2/a.png", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd"):
        with pytest.raises(PageError, match="not fetched"):
            fetch(f"{site}/moved?{there}", max_bytes=10_000, timeout=5)


def test_redirects_end(site: str) -> None:
    with pytest.raises(PageError, match="more than 4 times"):
        fetch(f"{site}/moved", max_bytes=10_000, timeout=5)


@pytest.mark.parametrize("path", ["/with-length", "/without-length"])
def test_long_answers_are_refused(site: str, path: str) -> None:
    with pytest.raises(PageError, match="max_bytes"):
        fetch(f"{site}{path}", max_bytes=4_000, timeout=5)


def test_answers_that_fail(site: str) -> None:
    with pytest.raises(PageError, match="answered 404"):
        fetch(f"{site}/none", max_bytes=10_000, timeout=5)
    with pytest.raises(PageError, match="broke off"):
        fetch(f"{site}/short", max_bytes=50_000, timeout=5)
    with pytest.raises(PageError, match="not an image"):
        PageSource(allow_urls=True).page(PageClues(image_url=f"{site}/text"))
    with pytest.raises(PageError, match="can't be fetched"):
        fetch("http://127.0.0.1:9/a.png", max_bytes=10_000, timeout=5)


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_an_answer_that_drips_is_cut_off(site: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(PageError, match="too long"):
        fetch(f"{site}{path}", max_bytes=10_000, timeout=0.5)
    assert time.monotonic() - start < 3


# TLS


def test_https_uses_tls_and_never_falls_back(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PageError, match="can't be fetched"):
        fetch(site.replace("http:", "https:") + "/a.png", max_bytes=10_000, timeout=5)
    moved = httpcore.Response(302, headers={"Location": "http://example.org/a.png"})
    monkeypatch.setattr(httpcore.ConnectionPool, "stream", lambda *_, **__: nullcontext(moved))
    with pytest.raises(PageError, match="from https to"):
        fetch("https://example.org/", max_bytes=10, timeout=1)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for pages.example that vouches for itself, and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    path = tmp_path / "certificate.pem"
    options = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=pages.example"
    extension = "subjectAltName=DNS:pages.example"
    subprocess.run(
        [openssl, *options.split(), "-addext", extension, "-keyout", path, "-out", tmp_path / "public.pem"],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + (tmp_path / "public.pem").read_bytes())
    return path


@pytest.fixture
def tls_port(public: None, certificate: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(lambda plain: context.wrap_socket(plain, server_side=True))


def test_the_certificate_must_be_the_name_s(
    tls_port: int, certificate: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://pages.example:{tls_port}"
    with pytest.raises(PageError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"{url}/host", max_bytes=1000, timeout=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(f"{url}/host", max_bytes=1000, timeout=5) == f"pages.example:{tls_port}".encode()
    other = f"https://other.example:{tls_port}/host"
    for start in (other, f"{url}/moved?{other}"):  # at the same address: no connection serves two names
        with pytest.raises(PageError, match="certificate is not valid for 'other.example'"):
            fetch(start, max_bytes=1000, timeout=5)
    with pytest.raises(PageError, match=r"not valid for '127\.0\.0\.1'"):
        fetch(f"https://127.0.0.1:{tls_port}/host", max_bytes=1000, timeout=5)
    assert names == ["pages.example"] * 2 + ["other.example", "pages.example", "other.example"]
