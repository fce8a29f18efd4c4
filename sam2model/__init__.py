"""SAM 2 video segmentation: the model and its engine, nothing of Ray, storage or YAML.

One dimension key for every shape comment in this package:
B images, N objects, T frames, C channels, H W rows and columns, P points or pointers,
M memory frames of one object, S slots, L tokens.
"""
