"""Where the evidence is, for people: heat maps and the HTML report."""

from mmrh_retriever.explain.heat_maps import attention_array, draw_regions, full_colour, heat, heat_map, save_heat_map

__all__ = ["attention_array", "draw_regions", "full_colour", "heat", "heat_map", "save_heat_map"]
