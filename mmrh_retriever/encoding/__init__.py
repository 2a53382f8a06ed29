"""Pages run once and their keys kept; questions run on the kept keys."""
