"""Probes: needles in long contexts, built, read from data sets, and turned into prompts."""
