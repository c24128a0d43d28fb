"""Prepared records: TFDS builders for this project's files, and reading of any builder, as ArrayRecord and without TensorFlow."""
