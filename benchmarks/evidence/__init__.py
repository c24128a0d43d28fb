"""The evidence: the paper's claims tested by the runs of configs/paper/, and docs/evidence.md made from their records.

  python -m benchmarks.evidence.run EXPERIMENT     # runs every cell and seed that is not finished, and keeps a record of each
  python -m benchmarks.evidence.write              # docs/evidence.md and its figures from the records
"""
