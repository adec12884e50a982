"""The plain calls, async and blocking: one conversion, no logic."""
