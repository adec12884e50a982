"""The typed calls, one manager for each subject."""
