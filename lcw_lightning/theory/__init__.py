"""Theory: the mathematics of the papers as pure functions of tensors and numbers.

It imports no other part of the package.
"""
