"""PDFs: valid ones that look odd and must be read, and damaged ones that must end soon, and in a :class:`PageError`."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pymupdf

from mmrh_retriever import MMRHError, Page, read_pdf
from tests.hostile import damage
from tests.hostile.outcomes import Wrong, expect


def odd(rng: random.Random, folder: Path) -> None:
    """A valid PDF, rotated, cropped, encrypted or with something in front of it, is read page by page."""
    made = pymupdf.open()
    words = [f"word{rng.randrange(10**6)}" for _ in range(rng.randrange(1, 5))]
    rotations = [rng.choice([0, 90, 180, 270]) for _ in words]
    for word, rotation in zip(words, rotations, strict=True):
        page = made.new_page(width=rng.choice([60, 300, 2000]), height=rng.choice([80, 400, 3000]))
        page.insert_text((5, 40), word, fontsize=8)
        page.set_rotation(rotation)
    made.set_metadata({"title": damage.text(rng).encode("utf-8", "replace").decode()})
    password = rng.choice([None, "word", "pässword"])
    options = {"encryption": pymupdf.PDF_ENCRYPT_AES_256, "user_pw": password, "owner_pw": "o"} if password else {}
    data = made.tobytes(garbage=rng.randrange(4), deflate=rng.random() < 0.5, **options)
    if rng.random() < 0.3 and not password:
        data = b"%" + bytes(rng.randrange(97, 122) for _ in range(rng.randrange(1, 300))) + b"\n" + data
    source: bytes | Path = data
    if rng.random() < 0.3:
        source = folder / rng.choice(["a.pdf", "\x1b[31m[red].pdf", "\u202efdp.pdf", "a" * 200 + ".pdf", "no suffix"])
        source.write_bytes(data)
    pages = _read(source, password=password, **_reader(rng, 0.3), max_pixels=20_000)
    expect([(page.text or "").strip() for page in pages] == words, f"expected the words {words}")
    expect([page.metadata["rotation"] for page in pages] == rotations, "other rotations")
    for page in pages:
        image = page.pixels()
        turned = page.size[0] > page.size[1]  # type: ignore[index]
        expect((image.width > image.height) == turned, f"{image.size} of a page of {page.size}")


def damaged(rng: random.Random, folder: Path) -> None:
    """A PDF with spoiled bytes is refused, or gives pages that can be drawn or are refused."""
    made = pymupdf.open()
    for _ in range(rng.randrange(1, 4)):
        page = made.new_page(width=200, height=300)
        page.insert_text((5, 40), "some words", fontsize=8)
        if rng.random() < 0.4:
            pixmap = pymupdf.Pixmap(pymupdf.csRGB, pymupdf.IRect(0, 0, 40, 40))
            page.insert_image((10, 60, 110, 160), stream=pixmap.tobytes(rng.choice(["png", "jpeg"])))
    _draw(rng, damage.spoiled(rng, made.tobytes(deflate=rng.random() < 0.5)))


def written(rng: random.Random, folder: Path) -> None:
    """A PDF by hand: recursion, huge numbers and sizes, bombs, wrong types, odd labels."""
    number = rng.choice([0, -1, 1, 3, 14_400, 14_401, 10**6, 10**9, 2**31, 2**63, 10**30])
    content = rng.choice([
        b"BT /F1 12 Tf 10 10 Td (word) Tj ET", b"q " * 20_000, b"/X Do",
        b"BI /W 99999 /H 99999 /BPC 8 /CS /RGB ID x EI",
        b"1 0 0 1 1e30 1e30 cm 0 0 1e30 1e30 re f", b"0 0 m " + b"9 9 l " * 20_000 + b"S", b"[" * 5000, b"(" * 5000,
        b"1e999 w nan inf re f", bytes(3_000_000), rng.randbytes(500),
    ])  # fmt: skip
    packed = zlib.compress(content)
    side = rng.choice([b"200", b"0", b"-5", b"3", str(number).encode(), b"1e9", b"null", b"(text)", b"5 0 R"])
    kids = rng.choice([b"[3 0 R]", b"[2 0 R]", b"[3 0 R 3 0 R]", b"[3 0 R 2 0 R]", b"3", b"[9 0 R]", b"[]"])
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/PageLabels<</Nums[0<</S/%s/St %d/P(%s)>>]>>>>"
        % (rng.choice([b"D", b"r", b"R", b"A", b"a", b"Q"]), number, b"x" * rng.choice([0, 3, 50_000])),
        b"<</Type/Pages/Kids%s/Count %d>>" % (kids, rng.choice([1, 1, 1, 2, -1, number])),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %s %s]/Rotate %d/UserUnit %s/Contents 4 0 R/Resources<</Font<</F1<<"
        b"/Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>/XObject<</X 5 0 R>>>>>>"
        % (
            side,
            rng.choice([b"300", side]),
            rng.choice([0, 90, 45, -90, number]),
            rng.choice([b"1", b"1", b"1e6", b"0"]),
        ),
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (rng.choice([len(packed), number]), packed),
        b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 5 0 R>>>>/Length 5>>stream\n"
        b"/X Do\nendstream",
    ]
    body, offsets = b"%PDF-1.7\n", []
    for place, entry in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (place, entry)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    body += b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(body),
    )
    _draw(rng, body)


def _draw(rng: random.Random, data: bytes) -> None:
    pages = read_pdf(data, strict=rng.random() < 0.5, **_reader(rng, 0.4), max_pixels=40_000)
    for page in pages[:4]:
        (page.text or "").encode(), (page.label or "").encode()
        image = page.pixels()
        expect(image.width * image.height <= 40_000, f"drawn with {image.size}")
        for region in page.regions:
            expect(region.box[0] <= region.box[2] and region.box[1] <= region.box[3], f"a box {region.box}")


def _reader(rng: random.Random, layout: float) -> dict[str, Any]:
    """One of the two libraries; regions from the one that finds them, with this probability."""
    if rng.random() < 0.5:
        return {"backend": "pdfium"}
    return {"backend": "pymupdf", "layout": rng.random() < layout}


def _read(source: bytes | Path, **options: Any) -> list[Page]:
    try:
        return read_pdf(source, **options)
    except MMRHError as error:
        raise Wrong(f"a valid PDF was refused: {error}") from error
