"""The built-in networks for small images; every one maps images (N, C, H, W) to logits (N, classes).

All take `num_classes`, `in_channels` and `image_size`, work from 8 pixels up, and name their parts alike: `layer1`,
`layer2`, .. each end where the resolution is about to change, so that a tap means the same in every network.
"""
