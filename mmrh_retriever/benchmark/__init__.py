"""Our speed against the paper's procedure, both measured in one run."""
