"""The papers' architectures: plain modules that never heard of constraints."""
