"""A recipe's sections, one file each: what can be set, its default, its meaning; `config.py` puts them together."""
