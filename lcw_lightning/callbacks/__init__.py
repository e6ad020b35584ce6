"""Callbacks for any Lightning project: they choose, call and log, and hold no formula."""
