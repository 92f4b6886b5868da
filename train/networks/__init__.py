"""Networks: the multiview UNet, the identity encoder, the autoencoder, and the model that they make up."""
