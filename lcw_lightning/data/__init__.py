"""Data modules, and the loader that feeds them."""
