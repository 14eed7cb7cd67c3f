"""`bench transfer`: what an initialisation is worth on datasets that no zoo has seen, beside all one could do instead.

subject.py (what is measured) x arena.py (one dataset, seed and number of shots) -> methods.py (models to start from)
-> run.py (cells, one file each) -> report.py (rows, comparisons) -> plots.py, page.py
"""
