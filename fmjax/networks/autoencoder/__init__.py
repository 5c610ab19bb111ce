"""The autoencoder of SD3 and FLUX, and tiled decoding of large images."""
