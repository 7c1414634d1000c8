"""The command line's commands, one file each: thin, and quick to load; what needs torch is imported when it runs."""
