"""Suites: tasks x targets x methods x seeds, run by any number of workers, and what they show."""
