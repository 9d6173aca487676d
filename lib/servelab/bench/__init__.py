"""Measurements: medians and spread, ratios within one run, and the machine they hold for.

No test depends on a timing; timings live here.
"""
