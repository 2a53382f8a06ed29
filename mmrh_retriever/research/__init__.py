"""The paper's science, apart from the product's path: finding retrieval heads and proving that they matter."""
