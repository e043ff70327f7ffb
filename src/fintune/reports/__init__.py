"""Pages and tables for people: evaluation, data quality, drift, comparisons.

`figures` makes rows of results and `page` makes HTML of a template; the other modules each make one report.
"""
