"""What ranking costs: planned from a configuration alone, and measured beside the paper's procedure."""
