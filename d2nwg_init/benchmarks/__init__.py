"""Measured against rivals: rows in one schema, drawn into tables and plots."""
