"""Frozen values and enums that the layers hand to each other; opens nothing, knows no other layer."""
