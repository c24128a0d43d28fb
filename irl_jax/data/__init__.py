"""Records -> tokens -> fixed-shape batches."""
