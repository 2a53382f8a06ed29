"""Pages and questions in, ranked pages and regions out."""
