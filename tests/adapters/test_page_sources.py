"""Pages from what documents say of them, and what is refused."""

from __future__ import annotations

import base64
import http.server
import io
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.adapters.fetching import check_url, fetch, is_public
from mmrh_retriever.adapters.page_sources import (
    PageClues,
    PageSource,
    clues_from_metadata,
    decode_base64,
    is_picture_text,
)
from mmrh_retriever.adapters.ranking import fetching
from mmrh_retriever.errors import PageError
from tests.factories import page_image


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    page_image(seed).save(stream, "PNG")
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose head claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    """Four pages, labelled i, ii, 1, 2; each one's text says which it is."""
    document = pymupdf.open()
    for number in range(4):
        document.new_page(width=200, height=300).insert_text((20, 40), f"sheet {number}")
    document.set_page_labels([{"startpage": 0, "style": "r"}, {"startpage": 2, "style": "D"}])
    path = tmp_path / "labelled.pdf"
    document.save(path)
    return path


@pytest.fixture
def plain_pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number in range(3):
        document.new_page(width=200, height=300).insert_text((20, 40), f"sheet {number}")
    path = tmp_path / "plain.pdf"
    document.save(path)
    return path


# Pictures in memory


def test_picture_routes_in_memory_agree() -> None:
    source, data = PageSource(), png()
    packed = base64.b64encode(data).decode()
    given: list[Any] = [
        page_image(0),
        data,
        packed,
        f"data:image/png;base64,{packed}",
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        "\n".join(packed[i : i + 76] for i in range(0, len(packed), 76)),
    ]
    for image in given:
        assert source.page(PageClues(image=image)).pixels().tobytes() == page_image(0).tobytes()


def test_image_in_another_form_names_what_was_got() -> None:
    with pytest.raises(PageError, match="is a dict"):
        PageSource().page(PageClues(image={}))  # type: ignore[arg-type]
    with pytest.raises(PageError, match="neither base64"):
        PageSource().page(PageClues(image="not a picture!"))
    with pytest.raises(PageError, match="not base64"):
        PageSource().page(PageClues(image="data:image/svg+xml,%3Csvg%3E"))
    with pytest.raises(PageError, match="not an image that can be read"):
        PageSource().page(PageClues(image=b"hello"))


def test_picture_text_is_told_from_paths_and_prose() -> None:
    packed = base64.b64encode(png()).decode()
    jpeg = io.BytesIO()
    page_image(1).save(jpeg, "JPEG")
    assert is_picture_text(packed)
    assert is_picture_text(base64.b64encode(jpeg.getvalue()).decode())  # begins with /9j/, as a path might
    assert is_picture_text(f"data:image/png;base64,{packed}")
    for text in ("", "/tmp/a.png", "Revenue grew.", "data:text/plain;base64,aGVsbG8=", "https://example.org/a.png"):
        assert not is_picture_text(text)


def test_base64_of_a_web_picture_is_found() -> None:
    webp = io.BytesIO()
    page_image(1).save(webp, "WEBP")
    assert is_picture_text(base64.b64encode(webp.getvalue()).decode())


def test_decode_base64_gives_the_bytes() -> None:
    assert decode_base64("aGk") == b"hi"
    assert decode_base64("data:;base64,aGk=") == b"hi"


# Files


def test_image_file_and_text(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(png(3))
    page = PageSource().page(PageClues(image_path=str(path), text="words", index=4))
    assert page.pixels().tobytes() == page_image(3).tobytes()
    assert (page.text, page.doc_id, page.index) == ("words", "scan.png", 4)


def test_text_alone_is_a_page_of_text() -> None:
    page = PageSource().page(PageClues(text="only words", doc_id="n1"))
    assert (page.image, page.text, page.doc_id) == (None, "only words", "n1")


def test_origin_that_is_no_picture_does_not_matter(tmp_path: Path) -> None:
    page = PageSource().page(PageClues(file_path=tmp_path / "notes.docx", text="words", index=2))
    assert page.image is None
    page = PageSource().page(PageClues(file_path="whole.pdf", text="a chunk of the whole file"))
    assert page.image is None


@pytest.mark.parametrize("key", ["image_path", "file_path"])
def test_pdf_and_page(pdf: Path, key: str) -> None:
    page = PageSource().page(PageClues(**{key: pdf, "index": 2}))
    assert (page.index, page.text, page.doc_id) == (2, "sheet 2", "labelled.pdf")
    assert page.pixels().size[0] > 200


def test_pdf_in_memory(pdf: Path) -> None:
    page = PageSource().page(PageClues(image=pdf.read_bytes(), label="2", doc_id="mem"))
    assert (page.text, page.doc_id) == ("sheet 3", "mem")


@pytest.mark.parametrize(("label", "sheet"), [("i", 0), ("ii", 1), ("1", 2), ("2", 3)])
def test_printed_labels_lead_to_their_pages(pdf: Path, label: str, sheet: int) -> None:
    assert PageSource().page(PageClues(file_path=pdf, label=label)).text == f"sheet {sheet}"


def test_labels_of_a_pdf_without_any_count_from_one(plain_pdf: Path) -> None:
    assert PageSource().page(PageClues(file_path=plain_pdf, label="3")).text == "sheet 2"
    with pytest.raises(PageError, match="no page with the label 'iv'"):
        PageSource().page(PageClues(file_path=plain_pdf, label="iv"))


def test_pdf_without_a_page_is_refused_unless_it_has_one(plain_pdf: Path, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="3 pages.*page_key"):
        PageSource().page(PageClues(file_path=plain_pdf))
    single = tmp_path / "single.pdf"
    document = pymupdf.open(plain_pdf)
    document.select([1])
    document.save(single)
    assert PageSource().page(PageClues(file_path=single)).text == "sheet 1"


def test_layout_is_found_on_request(pdf: Path) -> None:
    assert PageSource().page(PageClues(file_path=pdf, index=0)).regions == ()
    assert PageSource().page(PageClues(file_path=pdf, index=0), layout=True).regions


def test_nothing_to_score() -> None:
    with pytest.raises(PageError, match="d7 has nothing to score"):
        PageSource().page(PageClues(text=" ", doc_id="d7"))


# Trust: files


def test_allowed_root_holds_for_paths_links_and_dots(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.png").write_bytes(png())
    (outside / "b.png").write_bytes(png())
    (inside / "link.png").symlink_to(outside / "b.png")
    (inside / "folder").symlink_to(outside)
    source = PageSource(allowed_root=inside)
    assert source.page(PageClues(image_path=inside / "a.png")).image is not None
    for path in (outside / "b.png", inside / "link.png", inside / ".." / "out" / "b.png", inside / "folder" / "b.png"):
        with pytest.raises(PageError, match="outside the allowed folder"):
            source.page(PageClues(image_path=path))
    through = tmp_path / "root-link"
    through.symlink_to(inside)
    assert PageSource(allowed_root=through).page(PageClues(image_path=through / "a.png")).image is not None


@pytest.mark.parametrize("given", ["file:///etc/hostname", "ftp://host/a.png", "s3://bucket/a.png"])
def test_schemes_in_paths_are_refused(given: str) -> None:
    with pytest.raises(PageError, match="without a scheme"):
        PageSource().page(PageClues(image_path=given))


def test_missing_odd_and_special_files_are_refused(tmp_path: Path) -> None:
    for given in (tmp_path / "none.png", "nul\0.png", "a" * 5000 + ".png"):
        with pytest.raises(PageError, match="no such file") as caught:
            PageSource().page(PageClues(image_path=given))
        assert len(str(caught.value)) < 400
    with pytest.raises(PageError, match="not a plain file"):
        PageSource().page(PageClues(image_path=tmp_path))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PageError, match="not a plain file"):
        PageSource().page(PageClues(image_path=tmp_path / "pipe.png"))


def test_bytes_are_counted_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    source = PageSource(max_bytes=100)
    for clues in (
        PageClues(image_path=path),
        PageClues(image=png()),
        PageClues(image=base64.b64encode(png()).decode()),
    ):
        with pytest.raises(PageError, match="max_bytes allows 100"):
            source.page(clues)


def test_pixels_are_counted_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    source = PageSource(max_pixels=1000)
    for clues in (PageClues(image_path=path), PageClues(image=png()), PageClues(image=page_image(0))):
        with pytest.raises(PageError, match=r"96 x 128 pixels; max_pixels allows 1,000"):
            source.page(clues)


@pytest.mark.parametrize("size", [(9_000, 9_000), (10_000, 10_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(PageError, match="pixels"):
        PageSource().page(PageClues(image=bomb(*size)))
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    with pytest.raises(PageError, match="pixels"):
        PageSource().page(PageClues(image_path=path))


def test_formats_that_start_other_programs_are_refused() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
    with pytest.raises(PageError, match="Expected AVIF"):
        PageSource().page(PageClues(image=eps))


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": -1}, {"url_timeout": 0}, {"max_pixels": 10**9}])
def test_limits_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        PageSource(**limits)


# Metadata


def test_metadata_page_numbers(pdf: Path) -> None:
    def index(metadata: dict[str, Any], **options: Any) -> int | None:
        return clues_from_metadata(metadata, **options).index

    assert index({"page": 0}) == 0
    assert index({"page": "3"}, page_base=1) == 2
    assert index({"page": 2.0}) == 2
    assert index({"file_path": "a.pdf", "source": "3"}) == 2
    assert index({"source": "3"}) is None
    assert index({"sheet": 5, "page": 1}, page_key="sheet") == 5
    assert index({"page": 1}, page_key="sheet") is None
    assert index({}) is None
    for wrong in ("iv", True, 1.5, [1]):
        with pytest.raises(PageError, match="Expected a whole number"):
            index({"page": wrong})
    with pytest.raises(PageError, match="page_base=0"):
        index({"page": 0}, page_base=1)


def test_metadata_routes() -> None:
    packed = base64.b64encode(png()).decode()
    assert clues_from_metadata({"image": packed}).image == packed
    assert clues_from_metadata({"image_base64": "anything"}).image == "anything"
    assert clues_from_metadata({"image": "scans/a.png"}).image_path == "scans/a.png"
    assert clues_from_metadata({"image": "https://example.org/a.png"}).image_url == "https://example.org/a.png"
    assert clues_from_metadata({"image_url": "https://example.org/a.png"}).image_url == "https://example.org/a.png"
    assert clues_from_metadata({"source": "a.pdf"}).file_path == "a.pdf"
    assert clues_from_metadata({"source": "https://example.org/a.pdf"}).file_path is None
    assert clues_from_metadata({"file_path": "s3://bucket/a.pdf", "source": "a.pdf"}).file_path == "a.pdf"
    assert clues_from_metadata({"page_label": 7}).label == "7"


def test_metadata_is_not_changed() -> None:
    metadata = {"image": page_image(0), "page": 3}
    before = dict(metadata)
    clues_from_metadata(metadata)
    assert metadata == before


# Trust: the web


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
        "2002:7f00:1::", "2001:0:5ef5:79fd::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_closed_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/a", "gopher://x/", "//example.org/a", "http://", "http:///a",
        "http://[", "http://host:99999/",
    ],
)  # fmt: skip
def test_other_schemes_and_malformed_addresses(url: str) -> None:
    with pytest.raises(PageError, match=r"not fetched|not a web address"):
        check_url(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "http://[::1]/a", "http://2130706433/a", "http://0x7f.1/a"])
def test_addresses_of_this_machine(url: str) -> None:
    with pytest.raises(PageError, match="not a public address"):
        fetch(url, max_bytes=10, timeout=1)


def test_one_closed_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.0.0.5", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(PageError, match=r"10\.0\.0\.5"):
        check_url("http://two-faced.example/a.png")


def test_credentials_are_refused_and_not_repeated() -> None:
    with pytest.raises(PageError, match="credentials") as caught:
        check_url("http://user:hunter2@example.org/")
    assert "hunter2" not in str(caught.value)


def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves differently at its second look-up gains nothing."""
    answers = [[(2, 1, 6, "", ("93.184.216.34", 80))], [(2, 1, 6, "", ("127.0.0.1", 80))]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
    called: list[Any] = []

    def connect(address: Any, timeout: float) -> socket.socket:
        called.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(PageError, match="can't be fetched"):
        fetch("http://rebinding.example/a.png", max_bytes=10, timeout=1)
    assert called == [("93.184.216.34", 80)]


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
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return
        body = png() if self.path == "/a.png" else b"x" * 5000
        self.send_response(404 if self.path == "/none" else 200)
        if self.path != "/unsaid":
            self.send_header("Content-Length", str(len(body) * (2 if self.path == "/short" else 1)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, which for the test counts as public; 127.0.0.2 stays closed."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "handle_error", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_fetch_when_allowed(site: str) -> None:
    page = PageSource(allow_urls=True).page(PageClues(image_url=f"{site}/a.png"))
    assert page.pixels().tobytes() == page_image(0).tobytes()
    page = PageSource(allow_urls=True).page(PageClues(image_url=f"{site}/moved?{site}/a.png"))
    assert page.pixels().size == (96, 128)


def test_redirect_to_a_closed_address_is_refused(site: str) -> None:
    for there in ("http://127.0.0.2/a.png", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd"):
        with pytest.raises(PageError, match="not fetched"):
            fetch(f"{site}/moved?{there}", max_bytes=10_000, timeout=5)


def test_redirects_end(site: str) -> None:
    with pytest.raises(PageError, match="more than 4 times"):
        fetch(f"{site}/moved", max_bytes=10_000, timeout=5)


@pytest.mark.parametrize("path", ["/said", "/unsaid"])
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


def test_an_answer_that_drips_is_cut_off(site: str) -> None:
    start = time.monotonic()
    with pytest.raises(PageError, match="too long"):
        fetch(f"{site}/drip", max_bytes=10_000, timeout=0.5)
    assert time.monotonic() - start < 3


def test_https_uses_tls_and_never_falls_back(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PageError, match="can't be fetched"):
        fetch(site.replace("http:", "https:") + "/a.png", max_bytes=10_000, timeout=5)
    target = fetching.Target(True, "example.org", 443, "/", "127.0.0.1")
    monkeypatch.setattr(fetching, "check_url", lambda _: target)
    monkeypatch.setattr(fetching, "_request", lambda *_, **__: "http://example.org/a.png")
    with pytest.raises(PageError, match="from https to"):
        fetch("https://example.org/", max_bytes=10, timeout=1)


def test_pil_is_not_asked_about_pictures_it_must_not_open() -> None:
    assert set(Image.registered_extensions().values()) >= {"PNG", "JPEG"}
    with pytest.raises(PageError, match="Expected AVIF"):
        PageSource().page(PageClues(image=b"8BPS\0\1" + b"\0" * 20))
