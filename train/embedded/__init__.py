"""Small weights that come with spinset, which know procedural heads only, and the code that trains their autoencoder."""
