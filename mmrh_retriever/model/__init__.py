"""Everything that knows transformers: loading, prompts, the vision tower, and attention."""
