"""Installed fonts that can set English, found through fontconfig."""

from __future__ import annotations

import shutil
import subprocess

FIRST_FAMILIES = ("Liberation Sans",)
FOUR_FAMILIES = ("Liberation Sans", "Liberation Serif", "DejaVu Sans", "Nimbus Roman")
COMMON_FAMILIES = (
    *FOUR_FAMILIES,
    "Arimo",
    "C059",
    "CMU Bright",
    "CMU Sans Serif",
    "CMU Serif",
    "Caladea",
    "Cantarell",
    "Carlito",
    "Charis SIL",
    "Clear Sans",
    "DejaVu Sans Mono",
    "DejaVu Serif",
    "EB Garamond",
    "FreeMono",
    "FreeSans",
    "FreeSerif",
    "Gillius ADF",
    "Hack",
    "Inter",
    "Latin Modern Roman",
    "Lato",
    "Liberation Mono",
    "Liberation Sans Narrow",
    "Linux Biolinum O",
    "Linux Libertine O",
    "Nimbus Sans",
    "Noto Sans",
    "Noto Serif",
    "Open Sans",
    "P052",
    "Roboto",
    "STIX",
    "TeX Gyre Adventor",
    "TeX Gyre Bonum",
    "TeX Gyre Heros",
    "TeX Gyre Pagella",
    "Tuffy",
    "URW Bookman",
    "URW Gothic",
    "Vollkorn",
)
_WEIGHTS = ("regular", "book", "roman", "bold", "italic", "oblique", "bold italic", "bold oblique", "medium")


class FontsMissingError(RuntimeError):
    """No usable font is installed."""


def find_fonts(families: tuple[str, ...], *, upright_only: bool = False) -> list[str]:
    """Font files of the families in their common weights, sorted; families that are not installed are left out."""
    if shutil.which("fc-list") is None:
        raise FontsMissingError("fc-list was not found; expected fontconfig: install the package `fontconfig`")
    listing = subprocess.run(["fc-list", ":", "file", "family", "style"], capture_output=True, text=True, check=True)
    found = set()
    for line in listing.stdout.splitlines():
        path, _, rest = line.partition(": ")
        family, _, style = rest.partition(":style=")
        style = style.split(",")[0].strip().lower()
        wanted = style in (("regular", "book", "roman") if upright_only else _WEIGHTS)
        if wanted and family.split(",")[0].strip() in families and path.endswith((".ttf", ".otf", ".t1")):
            found.add(path)
    if not found:
        raise FontsMissingError(
            f"got no font of {len(families)} families, first {families[0]!r}; expected at least one: "
            "install the packages that tools/reader/README.md names"
        )
    return sorted(found)
