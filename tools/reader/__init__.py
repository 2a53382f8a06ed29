"""Trains the small reader model that the package bundles; `python -m tools.reader.train --help` says how."""
