"""The network: UNet and its layers, and foreign weights read into it (`pretrained`)."""
