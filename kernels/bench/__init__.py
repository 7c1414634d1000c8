"""Microbenchmarks of the kernels: `python -m mstdistill.kernels.bench --help`.

`cases.py` holds shapes, minimum bytes and the forms that are compared; `measure.py` times them; `report.py` writes
tables and plots. torch, triton and numpy are enough to run them; matplotlib draws the plots where it is installed.
"""
