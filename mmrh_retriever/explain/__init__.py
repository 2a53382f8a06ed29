"""Where the evidence is, for people: heat maps and the HTML report."""

from mmrh_retriever.explain.heat_maps import (
    attention_array,
    draw_regions,
    full_colour,
    heat,
    heat_map,
    save_heat_map,
)
from mmrh_retriever.explain.html_report import html_report, report_on

__all__ = [
    "attention_array",
    "draw_regions",
    "full_colour",
    "heat",
    "heat_map",
    "html_report",
    "report_on",
    "save_heat_map",
]
