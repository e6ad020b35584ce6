"""Weights: which layers hold them, where their units lie, how they are selected by name and restored.

This wing is on the lowest floor and may use torch alone.
"""
