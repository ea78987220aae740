"""Equality of final answers: typography, numbers, units, structure and expressions."""
