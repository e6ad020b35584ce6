"""Data: Lightning data modules of digits, MNIST and CIFAR, and the loader that feeds them and resumes in mid-epoch.

Knows torch, torchvision, scikit-learn and Lightning, and nothing of networks or of the rest of this package.
"""
