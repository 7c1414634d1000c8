"""Which tiles? Candidates built ahead of time, ranked by a cost model without a GPU, timed on one; see __main__.py."""
