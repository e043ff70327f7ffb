"""Reports for people: pages and tables on evaluation, data quality, drift and comparisons.

`figures` makes rows from results and `page` makes HTML from a template; every other module makes one report.
"""
