"""Data: Lightning data modules of digits, MNIST and CIFAR, and their loader, which can resume within an epoch.

They use torch, torchvision, scikit-learn and Lightning, but no networks and no other part of this package.
"""
