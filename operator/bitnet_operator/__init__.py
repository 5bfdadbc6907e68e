"""The operator: watches BitNetRuns, decides, and drives the jobs that train them."""
