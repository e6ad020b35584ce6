"""The networks of the papers, as plain PyTorch modules: MLP, VGG19, PreActResNet18 and DeepCNN.

Stands on torch alone. A model knows nothing of constraints, which are put on it from outside.
"""
