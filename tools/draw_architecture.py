"""Draw docs/architecture.svg: the package's rooms on their floors, and who imports whom.

    python tools/draw_architecture.py

Rooms, purposes and arrows come from the code: folders and root modules, the first lines of their docstrings, and real
imports. An arrow that follows from two others is left out. A test compares the picture with the code.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmrh_retriever"
PICTURE = ROOT / "docs" / "architecture.svg"
FLOORS: tuple[dict[str, float], ...] = (
    {"errors": 0.3, "locks": 0.7},
    {"bm25": 0.1, "settings": 0.3, "files": 0.5, "types": 0.7, "images": 0.9},
    {"heads": 0.1, "runs": 0.56, "pdf": 0.86},
    {"model": 0.26},
    {"encoding": 0.26},
    {"ranking": 0.26},
    {"library": 0.86},
    {"benchmark": 0.1, "explain": 0.3, "research": 0.5, "evaluation": 0.7, "adapters": 0.9},
    {"serving": 0.86},
    {"cli": 0.5},
)
"""Each floor's rooms, from the ground up, and where their middles are across the picture."""
WIDTH, BOX, HEIGHT, GAP = 1080, 200, 92, 44


def purposes() -> dict[str, str]:
    """The first sentence of each room's docstring."""
    found = {}
    for room in (room for floor in FLOORS for room in floor):
        path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[room] = docstring.splitlines()[0].replace("`", "")
    return found


def imports() -> dict[str, set[str]]:
    """Which other rooms the files of each room import."""
    rooms = {room for floor in FLOORS for room in floor}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own not in rooms:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name.name}" for name in node.names]
            elif isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1] in rooms - {own}:
                    found[own].add(parts[1])
    return found


def needed(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""

    def reached(room: str) -> set[str]:
        return arrows[room].union(*(reached(below) for below in arrows[room]))

    kept = []
    for room in sorted(arrows):
        kept += [
            (room, below)
            for below in sorted(arrows[room])
            if not any(below in reached(between) for between in arrows[room] - {below})
        ]
    return kept


def corners() -> dict[str, tuple[float, float]]:
    """The upper left corner of each room's box; the top floor is drawn first."""
    return {
        room: (middle * WIDTH - BOX / 2, 10 + number * (HEIGHT + GAP))
        for number, floor in enumerate(reversed(FLOORS))
        for room, middle in floor.items()
    }


def draw() -> str:
    """The picture as SVG."""
    at = corners()
    height = 20 + len(FLOORS) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        "<title>The rooms of mmrh_retriever and what they import</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#667"/></marker></defs>',
    ]
    for room, below in needed(imports()):
        (x, y), (x2, y2) = at[room], at[below]
        start, end = (x + BOX / 2, y + HEIGHT), (x2 + BOX / 2, y2 - 1)
        if y == y2:  # side by side
            left = x < x2
            start = (x + (BOX if left else 0), y + HEIGHT / 2)
            end = (x2 + (0 if left else BOX), y2 + HEIGHT / 2)
        points = " ".join(f"{px:.0f},{py:.0f}" for px, py in (start, end))
        parts.append(f'<polyline points="{points}" fill="none" stroke="#667" marker-end="url(#tip)"/>')
    for room, purpose in purposes().items():
        x, y = at[room]
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6" fill="#eef3f8" stroke="#456"/>'
        )
        parts.append(f'<text x="{x + 9:.0f}" y="{y + 19:.0f}" font-size="14" font-weight="bold">{room}</text>')
        for line, text in enumerate(wrap(purpose, 32)[:5]):
            parts.append(f'<text x="{x + 9:.0f}" y="{y + 35 + 13 * line:.0f}" font-size="10.5">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
