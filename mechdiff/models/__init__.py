"""Networks: the UNet and its layers, checkpoints of others (`pretrained`), any JAX function (`traced`)."""
