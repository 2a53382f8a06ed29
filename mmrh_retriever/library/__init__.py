"""Files as a library that questions are asked of: watched by content, opened again from disk, any first stage."""
