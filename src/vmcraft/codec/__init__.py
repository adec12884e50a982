"""Text and bytes to values and back; opens nothing."""
