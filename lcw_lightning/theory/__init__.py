"""The mathematics of both papers as pure functions: the zero-sum subspace, variance maps and the edge of chaos.

Numbers and tensors in, numbers and tensors out. It knows no module, keeps no state and touches no file.
"""
