"""Reports: tables of a run."""
