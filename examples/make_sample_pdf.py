"""Make sample_report.pdf: twelve pages like those of a real annual report, with questions whose answers they hold.

    python examples/make_sample_pdf.py [OUTPUT]

The company and everything in the report are invented. The long texts stand in sample_report_text.json. The same call
gives the same bytes.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pymupdf
from PIL import Image

TEXTS = json.loads(Path(__file__).with_name("sample_report_text.json").read_text(encoding="utf-8"))
COMPANY = "Harbour Line Ferries"
TITLE = f"{COMPANY}: Annual and Sustainability Report 2024"
WIDTH, HEIGHT = 595, 842  # A4, in points
LEFT, RIGHT, TOP, BOTTOM = 62, 533, 84, 778
NAVY, TEAL, SAND, GREY, WHITE = (
    (0.05, 0.18, 0.33),
    (0.1, 0.5, 0.52),
    (0.95, 0.92, 0.85),
    (0.45, 0.45, 0.48),
    (1, 1, 1),
)
INK = (0.1, 0.1, 0.12)

Color = tuple[float, float, float]


class Sheet:
    """A page with a pen: what is written stands below what was written before."""

    def __init__(
        self, document: pymupdf.Document, section: str, *, size: tuple[float, float] = (WIDTH, HEIGHT)
    ) -> None:
        self.page = document.new_page(width=size[0], height=size[1])
        self.y = float(TOP)
        if section:
            self.page.insert_text((LEFT, 48), section, fontsize=10, fontname="helv", color=GREY)
            self.page.draw_line((LEFT, 56), (RIGHT, 56), color=TEAL, width=1)
            self.page.insert_text((LEFT, 812), TITLE, fontsize=9, fontname="helv", color=GREY)
            self.page.insert_text((RIGHT - 12, 812), str(self.page.number + 1), fontsize=9, fontname="helv", color=GREY)

    def heading(self, text: str, size: float = 22, gap: float = 16) -> None:
        """Write a line of bold text; ``gap`` points stay free below it."""
        self.page.insert_text((LEFT, self.y + size), text, fontsize=size, fontname="hebo", color=NAVY)
        self.y += size + gap

    def text(
        self,
        text: str,
        *,
        size: float = 13,
        font: str = "helv",
        box: tuple[float, float] = (LEFT, RIGHT),
        gap: float = 9,
        align: int = 0,
        color: Color = INK,
    ) -> None:
        """Write a paragraph between the two edges of ``box``; ``gap`` points stay free below it."""
        area = pymupdf.Rect(box[0], self.y, box[1], BOTTOM)
        left_over = self.page.insert_textbox(
            area, text, fontsize=size, fontname=font, lineheight=1.4, align=align, color=color
        )
        if left_over < 0:
            raise ValueError(f"Page {self.page.number + 1} is too full for: {text[:60]}...")
        self.y = BOTTOM - left_over + gap


def cover(document: pymupdf.Document) -> None:
    page = Sheet(document, "").page
    page.draw_rect((0, 0, WIDTH, 500), color=None, fill=(0.75, 0.87, 0.92))
    page.draw_circle((455, 120), 46, color=None, fill=(0.99, 0.86, 0.55))
    for row, shade in enumerate([(0.35, 0.62, 0.7), (0.2, 0.48, 0.58), (0.1, 0.35, 0.47)]):
        base = 380 + 44 * row
        crest = [pymupdf.Point(x, base + 9 * math.sin(x / 38 + 1.9 * row)) for x in range(0, WIDTH + 20, 17)]
        if row == 1:
            ship(page)
        page.draw_polyline([*crest, (WIDTH, 560), (0, 560)], color=None, fill=shade, closePath=True)
    page.draw_rect((0, 520, WIDTH, HEIGHT), color=None, fill=NAVY)
    page.insert_text((LEFT, 600), COMPANY, fontsize=40, fontname="hebo", color=WHITE)
    page.insert_text((LEFT, 645), "Annual and Sustainability Report", fontsize=25, fontname="helv", color=WHITE)
    page.insert_text((LEFT, 700), "2024", fontsize=46, fontname="hebo", color=(0.99, 0.86, 0.55))
    page.insert_text(
        (LEFT, 770), "Quiet crossings, open water, steady service.", fontsize=15, fontname="heit", color=WHITE
    )


def ship(page: pymupdf.Page) -> None:
    page.draw_polyline([(150, 372), (430, 372), (400, 425), (178, 425)], color=None, fill=WHITE, closePath=True)
    page.draw_polyline([(155, 390), (424, 390), (414, 402), (162, 402)], color=None, fill=TEAL, closePath=True)
    page.draw_rect((200, 335, 385, 372), color=None, fill=WHITE)
    page.draw_rect((235, 305, 345, 335), color=None, fill=WHITE)
    page.draw_rect((300, 270, 325, 305), color=None, fill=NAVY)
    for x in range(210, 375, 22):
        page.draw_rect((x, 346, x + 12, 358), color=None, fill=NAVY)
    for x in range(245, 335, 22):
        page.draw_rect((x, 314, x + 12, 325), color=None, fill=NAVY)


def letter(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Letter from the chief executive")
    sheet.heading("A year of storms and of new batteries")
    for paragraph in TEXTS["letter"]:
        sheet.text(paragraph, font="tiro", size=13.5)
    sheet.y += 14
    sheet.text("Margaret Oduya", font="tiit", size=17, gap=0)
    sheet.text("Chief executive", font="tiro")


def key_figures(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Key figures")
    sheet.heading("Key figures of the last five years")
    sheet.text(TEXTS["key_figures"]["introduction"])
    table(sheet, TEXTS["key_figures"]["rows"], [151, 64, 64, 64, 64, 64])
    sheet.y += 14
    sheet.heading("What moved the figures", size=15, gap=8)
    sheet.text(TEXTS["key_figures"]["revenue"])
    sheet.text(TEXTS["key_figures"]["loans"])


def table(sheet: Sheet, rows: Sequence[Sequence[str]], widths: Sequence[float], size: float = 11.5) -> None:
    height = size + 13
    for r, row in enumerate(rows):
        top = sheet.y + r * height
        if r == 0:
            sheet.page.draw_rect((LEFT, top, LEFT + sum(widths), top + height), color=None, fill=NAVY)
        x = float(LEFT)
        for c, (cell, width) in enumerate(zip(row, widths, strict=True)):
            font = "hebo" if r == 0 or c == 0 else "helv"
            numeric = c > 0 and rows[1][c].replace(",", "").replace(".", "").lstrip("-").isdigit()
            length = pymupdf.get_text_length(cell, fontname=font, fontsize=size)
            start = x + width - 8 - length if numeric else x + 7
            color = WHITE if r == 0 else INK
            sheet.page.insert_text((start, top + height - 8), cell, fontsize=size, fontname=font, color=color)
            sheet.page.draw_rect((x, top, x + width, top + height), color=(0.7, 0.72, 0.75), width=0.6)
            x += width
    sheet.y += len(rows) * height + 10


def emissions(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Energy and climate")
    sheet.heading("Carbon emissions of the fleet")
    sheet.text(TEXTS["emissions"]["introduction"])
    years = ["2018", "2019", "2020", "2021", "2022", "2023", "2024"]
    values = [31.2, 32.6, 20.4, 25.1, 33.8, 28.3, 19.7]
    left, right, base, top = 110, 520, 560, 260
    sheet.page.insert_text(
        (left, top - 22), "Carbon dioxide, thousands of tonnes", fontsize=12, fontname="hebo", color=NAVY
    )
    for mark in range(0, 41, 10):
        y = base - (base - top) * mark / 40
        sheet.page.draw_line((left, y), (right, y), color=(0.82, 0.84, 0.86), width=0.6)
        sheet.page.insert_text((left - 24, y + 4), str(mark), fontsize=11, fontname="helv", color=GREY)
    step = (right - left) / len(years)
    for i, (year, value) in enumerate(zip(years, values, strict=True)):
        x = left + i * step + 10
        y = base - (base - top) * value / 40
        color = TEAL if year == "2024" else (0.45, 0.62, 0.72)
        sheet.page.draw_rect((x, y, x + step - 20, base), color=None, fill=color)
        sheet.page.insert_text((x + 5, y - 6), str(value), fontsize=12, fontname="hebo", color=INK)
        sheet.page.insert_text((x + 5, base + 18), year, fontsize=12, fontname="helv", color=INK)
    sheet.page.draw_line((left, base), (right, base), color=INK, width=1)
    sheet.y = 606
    sheet.text(TEXTS["emissions"]["target"])
    sheet.text(TEXTS["emissions"]["omitted"])


def people(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "People and safety")
    sheet.heading("Crew training and safety at work")
    start = sheet.y
    columns = (LEFT, LEFT + 225), (RIGHT - 225, RIGHT)
    for box, paragraphs in zip(columns, (TEXTS["people"]["left"], TEXTS["people"]["right"]), strict=True):
        sheet.y = start
        for paragraph in paragraphs:
            sheet.text(paragraph, size=13.5, font="tiro", box=box, gap=12)


def fleet(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Fleet register")
    sheet.heading("Our eight vessels")
    sheet.text(TEXTS["fleet"]["introduction"])
    table(sheet, TEXTS["fleet"]["rows"], [118, 54, 54, 54, 78, 113])
    sheet.y += 14
    sheet.heading("Repairs and dry dock", size=15, gap=8)
    sheet.text(TEXTS["fleet"]["repairs"])
    sheet.text(TEXTS["fleet"]["orders"])


def certificate(document: pymupdf.Document) -> None:
    """A typed letter as it comes out of a scanner: one grey image, a little askew, no text layer."""
    with pymupdf.open() as drawn:
        page = drawn.new_page(width=WIDTH, height=HEIGHT)
        page.insert_text((70, 90), "ELLERY HARBOUR AUTHORITY", fontsize=19, fontname="tibo")
        page.insert_text((70, 112), "Office of the Surveyor of Ships, Customs Quay 4", fontsize=12, fontname="tiro")
        page.draw_line((70, 122), (525, 122), width=1.2)
        y = 150.0
        for i, paragraph in enumerate(TEXTS["certificate"]):
            font, size = ("tibo", 15) if i == 1 else ("tiro", 13)
            left = page.insert_textbox((70, y, 520, 720), paragraph, fontsize=size, fontname=font, lineheight=1.4)
            y = 720 - left + 13
        pen = [(80, 640), (95, 610), (104, 645), (118, 618), (130, 640), (150, 622), (166, 640), (200, 628), (235, 634)]
        page.draw_curve(pen[0], pen[1], pen[2], width=1.3)
        page.draw_polyline(pen[2:], width=1.1)
        page.insert_text((70, 668), "Tobias Renwick, Surveyor of Ships", fontsize=13, fontname="tiro")
        page.draw_circle((440, 640), 48, color=(0.35, 0.35, 0.35), width=2)
        page.draw_circle((440, 640), 36, color=(0.35, 0.35, 0.35), width=1)
        page.insert_text((412, 636), "ELLERY", fontsize=14, fontname="tibo", color=(0.35, 0.35, 0.35))
        page.insert_text((407, 652), "HARBOUR", fontsize=12, fontname="tibo", color=(0.35, 0.35, 0.35))
        drawing = page.get_pixmap(dpi=125, colorspace=pymupdf.csGRAY)
        sharp = Image.frombytes("L", (drawing.width, drawing.height), drawing.samples)
    askew = sharp.rotate(-0.8, resample=Image.Resampling.BICUBIC, fillcolor=255)
    grey = np.asarray(askew, dtype=np.float32)
    shade = np.linspace(0, 14, grey.shape[1])[None, :]  # the lid did not close on the right
    noise = np.random.default_rng(7).normal(0, 3.0, grey.shape)
    scanned = np.clip(grey * 0.9 + 18 - shade + noise, 0, 255).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(scanned).save(jpeg, "JPEG", quality=60)
    page = Sheet(document, "").page
    page.insert_image(page.rect, stream=jpeg.getvalue())


def plan(document: pymupdf.Document) -> None:
    size = (720, 405)
    page = Sheet(document, "", size=size).page
    page.draw_rect((0, 0, size[0], 84), color=None, fill=NAVY)
    page.insert_text((40, 54), "Plan 2030: three steps to silent crossings", fontsize=28, fontname="hebo", color=WHITE)
    for i, (number, name, text) in enumerate(TEXTS["plan"]):
        x = 40 + i * 220
        page.draw_rect((x, 116, x + 200, 320), color=None, fill=SAND)
        page.draw_circle((x + 34, 152), 20, color=None, fill=TEAL)
        page.insert_text((x + 27, 160), number, fontsize=22, fontname="hebo", color=WHITE)
        page.insert_text((x + 64, 160), name, fontsize=21, fontname="hebo", color=NAVY)
        page.insert_textbox((x + 16, 190, x + 188, 315), text, fontsize=18, fontname="helv", lineheight=1.3, color=INK)
    page.insert_text(
        (40, 356),
        "Investment: 73 million crowns, half of it from the climate fund",
        fontsize=18,
        fontname="helv",
        color=INK,
    )
    page.insert_text((40, 388), COMPANY, fontsize=11, fontname="helv", color=GREY)
    page.insert_text((662, 388), "8", fontsize=11, fontname="helv", color=GREY)


def refunds(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "For passengers")
    sheet.heading("How to claim a refund for a late crossing")
    sheet.text(TEXTS["refunds"]["introduction"])
    for i, (what, more) in enumerate(TEXTS["refunds"]["steps"]):
        y = sheet.y + 6
        sheet.page.draw_circle((LEFT + 15, y + 16), 15, color=None, fill=TEAL)
        sheet.page.insert_text((LEFT + 10.5, y + 22), str(i + 1), fontsize=16, fontname="hebo", color=WHITE)
        sheet.y = y
        sheet.text(what, font="hebo", box=(LEFT + 46, RIGHT), gap=0)
        sheet.text(more, box=(LEFT + 46, RIGHT), gap=10)
    top = sheet.y + 14
    sheet.page.draw_rect((LEFT, top, RIGHT, top + 106), color=TEAL, fill=(0.91, 0.96, 0.96), width=1)
    sheet.y = top + 10
    sheet.text("How much do I get?", font="hebo", box=(LEFT + 16, RIGHT - 16), gap=2)
    sheet.text(TEXTS["refunds"]["amounts"], box=(LEFT + 16, RIGHT - 16))
    sheet.y = top + 132
    sheet.text(TEXTS["refunds"]["free"], color=GREY)


def routes(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Network")
    sheet.heading("Routes and sailing times")
    page = sheet.page
    sea = pymupdf.Rect(LEFT, 130, RIGHT, 530)
    page.draw_rect(sea, color=None, fill=(0.86, 0.93, 0.96))
    coast = [
        (LEFT, 130),
        (255, 130),
        (215, 190),
        (190, 260),
        (205, 330),
        (165, 410),
        (185, 480),
        (150, 530),
        (LEFT, 530),
    ]
    page.draw_polyline(coast, color=(0.6, 0.66, 0.5), fill=(0.9, 0.91, 0.8), closePath=True)
    page.draw_oval((396, 180, 516, 266), color=(0.6, 0.66, 0.5), fill=(0.9, 0.91, 0.8))
    page.draw_oval((390, 400, 490, 470), color=(0.6, 0.66, 0.5), fill=(0.9, 0.91, 0.8))
    ports = {
        "Port Ellery": (193, 262, -80),
        "Marsh Point": (202, 330, -84),
        "Kelso Bay": (182, 478, -76),
        "Skerry Island": (408, 226, 8),
        "Saltby": (396, 430, 12),
    }
    lines = (
        ("Port Ellery", "Skerry Island", "55 min"),
        ("Port Ellery", "Marsh Point", "20 min"),
        ("Marsh Point", "Saltby", "1 h 10"),
        ("Kelso Bay", "Saltby", "50 min"),
    )
    for one, other, time in lines:
        a, b = ports[one], ports[other]
        page.draw_line(a[:2], b[:2], color=NAVY, width=2, dashes="[6 4] 0")
        page.insert_text(
            ((a[0] + b[0]) / 2 + 6, (a[1] + b[1]) / 2 - 14), time, fontsize=12, fontname="heit", color=NAVY
        )
    for name, (x, y, shift) in ports.items():
        page.draw_circle((x, y), 5, color=WHITE, fill=(0.75, 0.25, 0.2))
        page.insert_text((x + shift, y + 18), name, fontsize=12, fontname="hebo", color=INK)
    sheet.y = 552
    sheet.text(TEXTS["routes"]["caption"], size=11, color=GREY)
    sheet.text(TEXTS["routes"]["first_boats"])
    sheet.text(TEXTS["routes"]["harbour_taxis"])


def board(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Governance")
    sheet.heading("The board and its pay")
    for paragraph in TEXTS["board"]:
        sheet.text(paragraph, size=13.5, font="tiro", gap=12)


def neighbours(document: pymupdf.Document) -> None:
    sheet = Sheet(document, "Nature and neighbours")
    sheet.heading("Seals, seagrass and the noise of engines")
    for paragraph in TEXTS["neighbours"]:
        sheet.text(paragraph)
    page, y = sheet.page, sheet.y + 20
    page.insert_text((LEFT, y), "Seal pups counted off Saltby", fontsize=12, fontname="hebo", color=NAVY)
    counts = {"2020": 188, "2021": 204, "2022": 251, "2023": 297, "2024": 341}
    points = [pymupdf.Point(110 + 95 * i, y + 190 - count * 0.45) for i, count in enumerate(counts.values())]
    page.draw_line((90, y + 190), (510, y + 190), color=INK, width=1)
    page.draw_polyline(points, color=TEAL, width=2.5)
    for point, (year, count) in zip(points, counts.items(), strict=True):
        page.draw_circle(point, 4, color=None, fill=TEAL)
        page.insert_text((point.x - 10, point.y - 10), str(count), fontsize=12, fontname="hebo", color=INK)
        page.insert_text((point.x - 13, y + 208), year, fontsize=12, fontname="helv", color=INK)


PAGES: tuple[Callable[[pymupdf.Document], None], ...] = (
    cover,
    letter,
    key_figures,
    emissions,
    people,
    fleet,
    certificate,
    plan,
    refunds,
    routes,
    board,
    neighbours,
)


def make() -> bytes:
    """The whole report as PDF bytes."""
    with pymupdf.open() as document:
        for draw in PAGES:
            draw(document)
        date = "D:20250301090000Z"
        document.set_metadata({"title": TITLE, "author": COMPANY, "creationDate": date, "modDate": date})
        return bytes(document.tobytes(garbage=3, deflate=True, no_new_id=True))


if __name__ == "__main__":
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("sample_report.pdf")
    output.write_bytes(make())
    print(f"{output}: {len(PAGES)} pages, {output.stat().st_size:,} bytes")
