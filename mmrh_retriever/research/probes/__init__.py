"""Probes: questions whose evidence is known, generated, read from data sets, or asked on whole documents."""

from mmrh_retriever.research.probes.builder import ProbeBuilder
from mmrh_retriever.research.probes.probe import TASKS, Evidence, Probe, page_probes

__all__ = ["TASKS", "Evidence", "Probe", "ProbeBuilder", "page_probes"]
