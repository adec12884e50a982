"""Change sets: what was declared, what the overlay holds of it, and the commit that survives kill -9."""
