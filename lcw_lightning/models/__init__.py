"""The networks of the papers, as plain PyTorch modules: MLP, VGG19, PreActResNet18 and DeepCNN.

They use torch only. A model has no code for constraints, which are added from outside.
"""
