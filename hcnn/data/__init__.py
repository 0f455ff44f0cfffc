"""The data sets: files and checksums, sets as tensors, what is done to images before the network sees them."""
