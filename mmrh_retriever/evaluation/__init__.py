"""Rankers measured on annotated documents: every question counts, nothing is lost when a run is killed."""
