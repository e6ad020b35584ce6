"""Weights: which layers hold them, where their units lie, how they are chosen by name and put back as they were.

The ground floor: it knows torch alone.
"""
