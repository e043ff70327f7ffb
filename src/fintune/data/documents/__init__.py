"""Filings, reports and transcripts: a file in, passages with their section and page out."""
